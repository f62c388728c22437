"""The sections of the configuration, one module each.

The source of a class is read for the help of its flags: small modules keep `--help` fast.
"""
