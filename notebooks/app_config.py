"""Settings of ``make app``: notebooks as apps, by Voila inside a Jupyter server.

The server asks for its token and refuses foreign Host headers, which Voila alone does not, so that
a web page elsewhere cannot reach it.  Every page that is opened starts a kernel, so these are
bounded, and end when nobody uses them.
"""

from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets.config import get_config

MOST_KERNELS = 4
"""Pages that can be open at once."""


class FewKernels(AsyncMappingKernelManager):
    """Refuses to start more kernels than that."""

    async def start_kernel(self, *args: Any, **kwargs: Any) -> str:
        if len(self.list_kernel_ids()) >= MOST_KERNELS:
            raise HTTPError(
                503,
                f"{MOST_KERNELS} pages are open, which is the most; close one, or wait.",
                reason="Too many pages are open",
            )
        kernel_id: str = await super().start_kernel(*args, **kwargs)
        return kernel_id


c = get_config()
c.ServerApp.kernel_manager_class = FewKernels
c.ServerApp.default_url = "/voila/tree"
c.ServerApp.open_browser = False
c.ServerApp.terminals_enabled = False
others = ("jupyterlab", "jupyter_lsp", "jupyter_server_terminals", "notebook_shim")
c.ServerApp.jpserver_extensions = {"voila.server_extension": True, **dict.fromkeys(others, False)}
c.MappingKernelManager.cull_idle_timeout = 1800
c.MappingKernelManager.cull_interval = 60
c.MappingKernelManager.cull_connected = True
