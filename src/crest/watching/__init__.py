"""What training shows of each example, at no cost."""
