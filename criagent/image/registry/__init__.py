# SPDX-License-Identifier: Apache-2.0
"""The registry client (OCI distribution specification), by concern:

client       manifests and blobs of an image, from the hosts of hosts.toml in turn
repository   one host's copy of a repository: challenges answered, refusals as errors
download     bytes of a blob into its part file
token        token services
challenge    WWW-Authenticate
transport    requests and redirects over one pool of connections
reach        which hosts could not be connected
retry        what is tried again, when, how often
failure      a server's refusal as an error
coding       Content-Encoding
wire         response headers as Go's net/http takes them
urls         origins, redirects, texts of URLs
progress     how far a pull is, and its stall clock

What a stranger's server sends has a limit everywhere. Credentials and tokens belong to the scheme,
host and port that asked for them, and are compared with those at every hop of a redirect.
"""

from criagent.image.registry.client import RegistryClient, Resolved, Settings
from criagent.image.registry.progress import Progress
from criagent.image.registry.session import Session

__all__ = ["Progress", "RegistryClient", "Resolved", "Session", "Settings"]
