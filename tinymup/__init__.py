"""tinymup: the μP, u-μP and Muon papers as a NumPy program to read, run and port."""
