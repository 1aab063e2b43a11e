from ._architecture import count_parameters as count_parameters
from ._architecture import make_student as make_student
from ._distill_widths import distill_widths as distill_widths
from ._evaluation import StudentLoss as StudentLoss
from ._evaluation import evaluate_student as evaluate_student
from ._families import student_config as student_config
from ._student import DistilledStudent as DistilledStudent
