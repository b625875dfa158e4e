"""The flows by their short name in a checkout: ``python -m flows.deploy``, ``flows.serve``.

They live in `synthgen.flows`, where no ``flows`` folder of somebody else's project hides them.
"""

from synthgen import flows

__path__ = flows.__path__
