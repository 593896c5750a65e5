"""Programs drawn at random: what models they run, what they do with them, what is planted in them."""
