"""`farflung finetune`: a run that tunes a model on labelled texts."""
