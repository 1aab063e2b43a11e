from ._comparison import ProbeComparison as ProbeComparison
from ._comparison import compare_probes as compare_probes
from ._comparison import probe_table as probe_table
from ._concepts import ConceptProbe as ConceptProbe
from ._features import feature_probes as feature_probes
