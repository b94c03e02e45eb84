"""Methods of sparse training, one class a file: what masks are when."""
