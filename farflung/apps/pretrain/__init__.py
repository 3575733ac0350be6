"""`farflung pretrain`: a run file becomes roles on machines and a model folder."""
