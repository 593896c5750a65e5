"""Mutants: does the audit find the site, and the line, of a change that nobody chose?

    python -m benchmarks.mutants --seed 0

The way of the data: `edits` lists what can be changed in the syntax tree of a modelling file of transformers, at lines
that run (`covered`); `subject` holds a tiny random model and makes a mutant of it, compiled in memory; `truth` runs
clean program and mutant on the same values at every site and says from the bits where they differ, and by how much of
the rounding; `trial` records the mutant and has it audited by the unchanged program; `score` counts.
"""
