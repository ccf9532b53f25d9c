from .color_basis import color_tokens, fit_color_basis
from .colors import color_parts, color_values, palette
from .images import view_picture
from .pages import Page, make_page
from .picture_files import save_gif, save_png
from .point_weights import interpolate_tokens, weights_at
from .sheets import render, render_picture
from .subject import Subject
from .views import (
    ColorBar,
    View,
    view_class,
    view_colors,
    view_points,
    view_parts,
    view_query,
    view_slot,
    view_slots,
    view_values,
)
from .window import show

__all__ = [
    "ColorBar",
    "Page",
    "Subject",
    "View",
    "color_parts",
    "color_tokens",
    "color_values",
    "fit_color_basis",
    "interpolate_tokens",
    "make_page",
    "palette",
    "render",
    "render_picture",
    "save_gif",
    "save_png",
    "show",
    "view_class",
    "view_colors",
    "view_parts",
    "view_picture",
    "view_points",
    "view_query",
    "view_slot",
    "view_slots",
    "view_values",
    "weights_at",
]
