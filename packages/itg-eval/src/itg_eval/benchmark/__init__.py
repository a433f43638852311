"""Stages 3 and 4: a host model answers with either frames, and the answers become a table.

plan.py      what is run, and where it lies in the run's folder
run.py       the four stages in order; what is done is not done again
answers.py   one host model over one selection, in lmms-eval's own process
outcomes.py  right or wrong per document, read out of lmms-eval's files
stats.py     is a difference more than chance: paired bootstrap, McNemar
table.py     outcomes -> accuracies, differences, costs
published.py the paper's numbers, to stand beside ours
report.py    the table as Markdown, JSON and one page
"""
