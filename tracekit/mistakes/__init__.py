"""What is the mistake? Each kind is one file of `sites/`, `filters/` or `draws/`; `explain` chooses one at a site."""
