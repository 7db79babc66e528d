"""`python -m kernel_image` runs the supervisor. The garbage collector is off during the imports, which leave it little.

Later collections pass over what has been imported.
"""

import gc

gc.disable()

from kernel_image.supervisor import main  # noqa: E402 - the import is what it is disabled for

if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    main()
