"""An RTSP server on the loopback address for the tests: `python rtsp_server.py PORT WIDTH HEIGHT`.

A process of its own, because GStreamer's Python is that of the system. It ends with its standard input.
"""

import sys
from threading import Thread

import gi  # pyright: ignore[reportMissingImports]

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402  # pyright: ignore[reportMissingImports]

port, width, height = sys.argv[1:]
Gst.init(None)
if Gst.ElementFactory.find("x264enc") is None:
    sys.exit("no encoder of H.264")
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( videotestsrc is-live=true pattern=ball ! video/x-raw,width={width},height={height},framerate=25/1"
    " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! rtph264pay name=pay0 pt=96 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/ball", factory)
server.attach(None)
loop = GLib.MainLoop()
Thread(target=lambda: (sys.stdin.read(), loop.quit()), daemon=True).start()
print("ready", flush=True)
loop.run()
