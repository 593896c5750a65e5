"""The reference program itself as the recipe: run in float64 over what a candidate recorded, site by site."""
