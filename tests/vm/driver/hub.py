"""The network between guests: each sends its frames to its own Unix socket, and every other guest receives them."""

import contextlib
import os
import selectors
import socket
import threading

FRAME_MAX = 65_536


class Hub(threading.Thread):
    """Carries frames between `ports` guests until the process ends."""

    def __init__(self, folder, ports):
        super().__init__(daemon=True)
        self.folder, self.ports = folder, ports
        self.selector = selectors.DefaultSelector()
        for port in range(ports):
            it = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            it.bind(self._path("hub", port))
            it.setblocking(False)
            self.selector.register(it, selectors.EVENT_READ, port)
        self.start()

    def device(self, port, address):
        """QEMU's arguments for the network card of the guest at this port."""
        ends = f"local.type=unix,local.path={self._path('card', port)}"
        ends += f",remote.type=unix,remote.path={self._path('hub', port)}"
        return ["-netdev", f"dgram,id=cable,{ends}", "-device", f"virtio-net-pci,netdev=cable,mac={address}"]

    def run(self):
        while True:
            for key, _ in self.selector.select():
                frame = key.fileobj.recv(FRAME_MAX)
                for port in range(self.ports):
                    if port != key.data:
                        # A guest that is off or slow loses frames, as on any network.
                        with contextlib.suppress(OSError):
                            key.fileobj.sendto(frame, self._path("card", port))

    def _path(self, kind, port):
        return os.path.join(self.folder, f"{kind}{port}")
