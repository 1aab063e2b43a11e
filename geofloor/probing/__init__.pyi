from ._concepts import ConceptProbe as ConceptProbe
from ._concepts import ProbeComparison as ProbeComparison
from ._concepts import compare_probes as compare_probes
from ._concepts import feature_probes as feature_probes
from ._concepts import probe_table as probe_table
