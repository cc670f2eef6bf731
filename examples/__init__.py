"""One folder for each example; the tests run them all."""
