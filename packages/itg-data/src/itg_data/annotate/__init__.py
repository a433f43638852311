"""From raw videos and QA pairs to a training set: the VidThinker pipeline as code.

`itg-data annotate` runs it. What goes in, what comes out and what is dropped are the records of
`itg_data.annotate.records`; importing this package needs nothing beyond itg-data's light base.

Source: the pipeline of VideoITG (arXiv 2507.13353) as its data set's card and figures describe it;
written anew, with prompts of its own.
"""
