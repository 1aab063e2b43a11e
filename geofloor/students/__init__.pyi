from ._architecture import count_parameters as count_parameters
from ._architecture import make_student as make_student
from ._distillation import DistilledStudent as DistilledStudent
from ._distillation import distill_widths as distill_widths
from ._families import student_config as student_config
