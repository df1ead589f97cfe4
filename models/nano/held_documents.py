"""The 8 held-out documents: layouts, words and fonts of their own, shared with no training page."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from nano.drawing import Colour, Fonts, canvas, mix, paragraph

_INK: Colour = (28, 30, 34)
_WHITE: Colour = (255, 255, 255)
_BLUE: Colour = (38, 92, 160)
_SAND: Colour = (244, 238, 226)

_HARBOUR = (
    "The harbour lay quiet before dawn. Two men carried ropes along the quay while gulls walked between the "
    "crates, and the water under the boats was black and still. At five the first lamp was lit in the office "
    "above the ice house; by six there were lorries at the gate, and the fish lay in rows on the wet floor with "
    "slips of paper between them. Nobody raised his voice. The buyers went from row to row, bent down, nodded, "
    "and wrote a number in a little book. "
)
_BREAD = (
    "Mix the flour with the salt, make a hollow, and pour in the water with the yeast. Knead for ten minutes "
    "until the dough is smooth and comes away from the bowl. Cover it with a cloth and leave it in a warm place "
    "for an hour. Fold it twice, shape a loaf, let it rise again while the oven heats, cut the top with a sharp "
    "knife and bake it on stone. "
)


def letter(fonts: Fonts) -> Image.Image:
    """A letter with a heading and two paragraphs of 20 pixels."""
    image, pen = canvas(800, 1000, _WHITE)
    pen.text((80, 70), "Harbour Office", fill=_BLUE, font=fonts.get(1, 42))
    pen.line((80, 132, 720, 132), fill=_BLUE, width=3)
    y = paragraph(pen, (80, 170, 720, 960), _HARBOUR, fonts.get(0, 20), _INK, 1.6)
    paragraph(pen, (80, y + 24, 720, 960), _BREAD + _HARBOUR, fonts.get(0, 20), _INK, 1.6)
    return image


def recipe(fonts: Fonts) -> Image.Image:
    """A card of larger type on tinted paper beside a list."""
    image, pen = canvas(900, 640, _SAND)
    pen.text((50, 36), "Plain white bread", fill=(120, 50, 30), font=fonts.get(2, 56))
    paragraph(pen, (50, 150, 560, 600), _BREAD, fonts.get(3, 28), _INK, 1.45)
    pen.rounded_rectangle((600, 150, 860, 500), 18, fill=_WHITE, outline=(190, 160, 120), width=3)
    for i, line in enumerate(("500 g flour", "320 g water", "10 g salt", "7 g yeast", "1 spoon of oil")):
        pen.text((630, 180 + 60 * i), line, fill=_INK, font=fonts.get(3, 28))
    return image


def bars(fonts: Fonts) -> Image.Image:
    """A bar chart in two colours with a legend."""
    image, pen = canvas(880, 560, _WHITE)
    pen.text((90, 24), "Rain by month, in millimetres", fill=_INK, font=fonts.get(1, 30))
    rain = ((62, 48), (44, 51), (58, 39), (40, 66), (71, 80), (93, 77), (110, 96), (88, 104), (70, 61), (52, 83))
    for i in range(7):
        y = 480 - 60 * i
        pen.line((90, y, 840, y), fill=(222, 224, 228), width=1)
        pen.text((44, y - 12), str(20 * i), fill=_INK, font=fonts.get(0, 20))
    for i, (first, second) in enumerate(rain):
        x = 110 + 72 * i
        pen.rectangle((x, 480 - 3 * first, x + 26, 480), fill=_BLUE)
        pen.rectangle((x + 28, 480 - 3 * second, x + 54, 480), fill=(240, 160, 60))
        pen.text((x + 8, 492), "JFMAMJJASO"[i], fill=_INK, font=fonts.get(0, 22))
    pen.rectangle((640, 76, 664, 100), fill=_BLUE)
    pen.text((674, 74), "north", fill=_INK, font=fonts.get(0, 22))
    pen.rectangle((740, 76, 764, 100), fill=(240, 160, 60))
    pen.text((774, 74), "south", fill=_INK, font=fonts.get(0, 22))
    return image


def curves(fonts: Fonts) -> Image.Image:
    """Three curves on a dark ground."""
    dark: Colour = (24, 28, 38)
    image, pen = canvas(960, 600, dark)
    pen.text((70, 22), "Damped oscillation", fill=(230, 232, 238), font=fonts.get(1, 34))
    for i in range(9):
        pen.line((70 + 105 * i, 90, 70 + 105 * i, 540), fill=(54, 60, 74))
    for i in range(7):
        pen.line((70, 90 + 75 * i, 910, 90 + 75 * i), fill=(54, 60, 74))
    x = np.linspace(0, 8, 421)
    for rate, colour in ((0.15, (96, 200, 255)), (0.4, (255, 170, 80)), (0.9, (150, 230, 120))):
        y = 315 - 210 * np.exp(-rate * x) * np.cos(2.4 * x)
        pen.line([(70 + 105 * float(a), float(b)) for a, b in zip(x, y, strict=True)], fill=colour, width=4)
    pen.text((430, 556), "time in seconds", fill=(200, 204, 214), font=fonts.get(0, 22))
    return image


def mail(fonts: Fonts) -> Image.Image:
    """A mail program: folders, messages, one of them open."""
    image, pen = canvas(1200, 760, _WHITE)
    pen.rectangle((0, 0, 1200, 54), fill=(48, 58, 82))
    pen.text((22, 12), "Post", fill=_WHITE, font=fonts.get(1, 26))
    pen.rounded_rectangle((320, 12, 820, 42), 15, fill=(84, 95, 122))
    pen.text((340, 15), "Search", fill=(208, 214, 226), font=fonts.get(0, 18))
    pen.rectangle((0, 54, 200, 760), fill=(238, 240, 245))
    for i, name in enumerate(("Inbox", "Starred", "Sent", "Drafts", "Archive", "Bin")):
        if i == 0:
            pen.rounded_rectangle((10, 74, 190, 112), 8, fill=(206, 220, 246))
        pen.rectangle((24, 84 + 48 * i, 42, 102 + 48 * i), fill=mix(_BLUE, _WHITE, 0.12 * i))
        pen.text((56, 81 + 48 * i), name, fill=_INK, font=fonts.get(0, 20))
    for i, name in enumerate(("Ada Berg", "Tomas Lind", "Library", "Eva Roth", "Choir", "Bank", "Jon Falk", "Garden")):
        y = 70 + 84 * i
        pen.ellipse((216, y, 264, y + 48), fill=mix((200, 80, 70), (60, 150, 130), i / 7))
        pen.text((278, y), name, fill=_INK, font=fonts.get(1, 20))
        pen.text((278, y + 26), "About the meeting on Friday", fill=(110, 114, 124), font=fonts.get(0, 16))
        pen.line((216, y + 66, 540, y + 66), fill=(226, 228, 232))
    pen.line((556, 54, 556, 760), fill=(214, 217, 224), width=2)
    pen.text((590, 84), "Boats for the summer", fill=_INK, font=fonts.get(1, 30))
    paragraph(pen, (590, 150, 1160, 680), _HARBOUR + _BREAD, fonts.get(0, 20), _INK, 1.55)
    pen.rounded_rectangle((590, 690, 710, 732), 8, fill=_BLUE)
    pen.text((616, 698), "Reply", fill=_WHITE, font=fonts.get(0, 20))
    return image


def settings(fonts: Fonts) -> Image.Image:
    """A telephone's page of switches and sliders."""
    image, pen = canvas(480, 860, (242, 242, 247))
    pen.text((28, 40), "Settings", fill=_INK, font=fonts.get(1, 40))
    for i, name in enumerate(("Wireless", "Bluetooth", "Night light", "Sounds", "Updates", "Location")):
        y, on = 120 + 84 * i, i % 2 == 0
        pen.rounded_rectangle((20, y, 460, y + 70), 14, fill=_WHITE)
        pen.rounded_rectangle((34, y + 15, 74, y + 55), 10, fill=mix((240, 120, 60), (60, 120, 220), i / 5))
        pen.text((92, y + 20), name, fill=_INK, font=fonts.get(0, 24))
        pen.rounded_rectangle((376, y + 18, 440, y + 52), 17, fill=(70, 190, 100) if on else (205, 206, 210))
        left = 408 if on else 378
        pen.ellipse((left, y + 20, left + 30, y + 50), fill=_WHITE)
    for i, share in enumerate((0.3, 0.8)):
        y = 660 + 80 * i
        pen.rounded_rectangle((40, y, 440, y + 10), 5, fill=(205, 206, 210))
        pen.rounded_rectangle((40, y, 40 + 400 * share, y + 10), 5, fill=_BLUE)
        pen.ellipse((28 + 400 * share, y - 9, 56 + 400 * share, y + 19), fill=_WHITE, outline=(180, 182, 190), width=2)
    return image


def poster(fonts: Fonts) -> Image.Image:
    """Large words over a sky of bands and a sun."""
    image, pen = canvas(720, 960, _WHITE)
    for y in range(960):
        pen.line((0, y, 720, y), fill=mix((20, 40, 90), (250, 180, 110), (y / 959) ** 1.3))
    pen.ellipse((240, 430, 480, 670), fill=(255, 224, 150))
    for i in range(5):
        pen.polygon([(-40, 700 + 50 * i), (200 + 40 * i, 640 + 60 * i), (460, 720 + 40 * i), (760, 650 + 60 * i),
                     (760, 960), (-40, 960)], fill=mix((90, 60, 90), (16, 20, 40), i / 4))  # fmt: skip
    pen.text((70, 90), "EVENING", fill=(255, 240, 220), font=fonts.get(1, 110))
    pen.text((74, 220), "by the sea, from eight o'clock", fill=(255, 240, 220), font=fonts.get(0, 36))
    return image


def table(fonts: Fonts) -> Image.Image:
    """A timetable with a shaded head and alternating rows."""
    image, pen = canvas(1000, 620, _WHITE)
    pen.text((40, 24), "Departures", fill=_INK, font=fonts.get(1, 34))
    _row(pen, fonts, 90, ("Time", "Train", "To", "Platform", "Note"), (70, 84, 110), _WHITE)
    towns = ("Aldenburg", "Weststrand", "Niederau", "Hohenfels", "Sankt Veit", "Brunnthal", "Ostermark", "Lindhafen")
    for i, town in enumerate(towns):
        ground = (244, 246, 250) if i % 2 else _WHITE
        late = "5 min late" if i in (2, 5) else "on time"
        _row(pen, fonts, 146 + 54 * i, (f"{7 + i}:{(13 * i) % 60:02}", f"R {210 + 7 * i}", town, str(1 + i % 5), late),
             ground, (190, 40, 40) if i in (2, 5) else _INK)  # fmt: skip
    return image


def _row(pen: ImageDraw.ImageDraw, fonts: Fonts, y: int, cells: tuple[str, ...], ground: Colour, ink: Colour) -> None:
    pen.rectangle((40, y, 960, y + 52), fill=ground)
    for x, cell in zip((60, 200, 360, 640, 790), cells, strict=True):
        pen.text((x, y + 12), cell, fill=ink, font=fonts.get(0, 24))


HELD_DOCUMENTS: dict[str, Callable[[Fonts], Image.Image]] = {
    made.__name__: made for made in (letter, recipe, bars, curves, mail, settings, poster, table)
}
"""The held-out documents by name."""


def held_document(name: str, fonts: Fonts) -> Image.Image:
    """One of `HELD_DOCUMENTS`."""
    return HELD_DOCUMENTS[name](fonts)
