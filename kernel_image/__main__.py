"""`python -m kernel_image`: the supervisor, imported without looking for garbage, of which imports leave none.

What has been imported is not looked at later either.
"""

import gc

gc.disable()

from kernel_image.supervisor import main  # noqa: E402 - the import is what it is disabled for

if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    main()
