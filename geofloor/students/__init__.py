"""Narrower copies of a teacher, and their training.

`student_config` and `make_student` set the architecture and the first weights. `DistilledStudent` trains one student,
`distill_widths` several in one pass with one forward pass of the teacher.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
