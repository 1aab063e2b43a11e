from ._distillation import plan_distillation as plan_distillation
from ._plan import NextRun as NextRun
from ._plan import Plan as Plan
