"""`farflung pretrain` and `farflung join`: a run file becomes roles on machines and a model folder."""
