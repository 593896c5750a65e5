"""What belongs to one model or one program."""
