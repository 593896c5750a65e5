"""What was found, and why: causes, culprits, counterfactuals, coverage."""
