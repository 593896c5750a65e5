"""One file a mistake, or a close kin of them: the object with its words, and the values that a site would then hold."""
