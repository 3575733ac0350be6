"""`farflung pilot`: a job tried small and for real, beside what its plan predicts."""
