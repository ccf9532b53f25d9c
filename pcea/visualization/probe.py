"""Try to draw a picture or to open a window with Open3D; the process ends with 0 if that works.

Run as text in a process of its own. It imports nothing from pcea, because that would import torch.
"""

import ctypes
import os
import sys

import numpy as np
import open3d


def draw_picture() -> None:
    """Draw red points and check that some pixels are red."""
    window = open3d.visualization.Visualizer()
    if not window.create_window(width=64, height=64, visible=False):
        sys.exit("no window could be made")
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(np.eye(3)))
    cloud.paint_uniform_color((1, 0, 0))
    window.add_geometry(cloud)
    window.get_render_option().point_size = 20
    picture = np.asarray(window.capture_screen_float_buffer(do_render=True))
    if not (picture == (1, 0, 0)).all(-1).any():
        sys.exit("what it draws does not arrive in the picture")


def open_window() -> None:
    """Open a window and draw in it a few times."""
    if sys.platform.startswith("linux") and not os.environ.get("WAYLAND_DISPLAY"):
        # Without an X server, Open3D makes a window that nobody can see.
        x11 = ctypes.CDLL("libX11.so.6")
        x11.XOpenDisplay.restype = ctypes.c_void_p
        if not x11.XOpenDisplay(None):
            sys.exit(f"no X server answers at DISPLAY={os.environ.get('DISPLAY', '')!r}")
    app = open3d.visualization.gui.Application.instance
    app.initialize()
    window = app.create_window("pcea", 64, 64)
    for _ in range(10):
        window.post_redraw()
        app.run_one_tick()
    # At once: with Mesa's software Vulkan, an ordinary exit crashes if the mouse is over the window.
    os._exit(0)


if __name__ == "__main__":
    {"picture": draw_picture, "window": open_window}[sys.argv[1]]()
