"""One trace against its checkpoint: every site's own error, judged by what rounding may do."""
