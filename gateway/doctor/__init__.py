"""`cellblock doctor`: what could keep Cellblock from running code safely here, each with what to do about it.

It looks and changes nothing. Printing is the command line's business.
"""
