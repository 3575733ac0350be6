"""`farflung config`: run files checked, shown in full, and described for editors."""
