"""Two traces side by side: errors, what they are measured against, and the first thing that is wrong."""
