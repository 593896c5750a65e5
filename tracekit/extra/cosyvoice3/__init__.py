"""CosyVoice3: its counts, its configuration, its programs' text logs, its sound."""
