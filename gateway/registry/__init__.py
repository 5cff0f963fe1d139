"""What models there are, how each is to be served, and verified copies of them."""
