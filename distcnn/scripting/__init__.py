"""Any Keras script: trains what a user's own code compiles and fits, on any number of workers."""
