"""Cartoon faces, any number of them: python-avatars combines the parts, resvg draws them."""

import io
import random
from itertools import pairwise
from xml.etree import ElementTree as ET

import resvg_py
from PIL import Image
from python_avatars import (
    AccessoryType,
    Avatar,
    AvatarStyle,
    ClothingColor,
    ClothingType,
    EyebrowType,
    EyeType,
    FacialHairType,
    HairColor,
    HairType,
    MouthType,
    SkinColor,
)

from glann.prepare.settings import Prepare

HEAD_AND_SHOULDERS = "32 24 200 200"  # x, y, width and height of the visible square, in avatar units
BACKGROUNDS = ("#CFE3F2", "#F6DDD0", "#D8EBD3", "#FBF0C9")
SKINS = (
    SkinColor.PALE,
    SkinColor.LIGHT,
    SkinColor.BROWN,
    SkinColor.DARK_BROWN,
    SkinColor.BLACK,
)
SHORT_HAIR = (
    HairType.NONE,
    HairType.CAESAR,
    HairType.SHORT_FLAT,
    HairType.SHORT_WAVED,
    HairType.SHORT_CURLY,
)
LONG_HAIR = (
    HairType.BUN,
    HairType.BOB,
    HairType.LONG_NOT_TOO_LONG,
    HairType.STRAIGHT_1,
    HairType.CURLY,
)
HAIR_COLORS = (
    HairColor.BLACK,
    HairColor.BROWN,
    HairColor.AUBURN,
    HairColor.RED,
    HairColor.BLONDE_GOLDEN,
    HairColor.SILVER_GRAY,
)
BEARDS = (
    FacialHairType.BEARD_LIGHT,
    FacialHairType.BEARD_MEDIUM,
    FacialHairType.MOUSTACHE_FANCY,
)
EYES = (
    EyeType.DEFAULT,
    EyeType.HAPPY,
    EyeType.SURPRISED,
    EyeType.WINK,
)
EYEBROWS = (
    EyebrowType.DEFAULT,
    EyebrowType.RAISED_EXCITED,
)
MOUTHS = (
    MouthType.SMILE,
    MouthType.TWINKLE,
    MouthType.SERIOUS,
    MouthType.TONGUE,
)
GLASSES = (
    AccessoryType.PRESCRIPTION_2,
    AccessoryType.ROUND,
    AccessoryType.SUNGLASSES,
)
CLOTHES = (
    ClothingType.BLAZER_SHIRT,
    ClothingType.HOODIE,
    ClothingType.SHIRT_CREW_NECK,
    ClothingType.SHIRT_V_NECK,
)
CLOTHES_COLORS = (
    ClothingColor.BLACK,
    ClothingColor.BLUE_02,
    ClothingColor.BLUE_03,
    ClothingColor.PASTEL_GREEN,
    ClothingColor.PINK,
    ClothingColor.RED,
    ClothingColor.WHITE,
)


def draw_avatar(seed: int, config: Prepare) -> Image.Image:
    """Draw the face that belongs to `seed`, an RGB square of `config.resolution` pixels."""
    rng = random.Random(seed)
    short = rng.random() < 0.55
    bearded = short and rng.random() < 0.36  # one face in five
    hair_color = rng.choice(HAIR_COLORS)
    avatar = Avatar(
        style=AvatarStyle.TRANSPARENT,
        top=rng.choice(SHORT_HAIR if short else LONG_HAIR),
        eyebrows=rng.choice(EYEBROWS),
        eyes=rng.choice(EYES),
        mouth=rng.choice(MOUTHS),
        facial_hair=rng.choice(BEARDS) if bearded else FacialHairType.NONE,
        skin_color=rng.choice(SKINS),
        hair_color=hair_color,
        facial_hair_color=hair_color,
        accessory=rng.choice(GLASSES) if rng.random() < 0.25 else AccessoryType.NONE,
        clothing=rng.choice(CLOTHES),
        clothing_color=rng.choice(CLOTHES_COLORS),
    )
    png = resvg_py.svg_to_bytes(
        svg_string=_color_parts_directly(avatar.render()),
        background=rng.choice(BACKGROUNDS),
        width=config.resolution,
        height=config.resolution,
        skip_system_fonts=True,
    )
    return Image.open(io.BytesIO(png)).convert("RGB")


def _color_parts_directly(svg: str) -> str:
    """Colour each part directly, and show only head and shoulders.

    The library fills a part with a dark colour and covers it with a coloured rectangle, masked by the same
    part. The dark colour then shows along every edge, and drawing takes twice as long because of the masks.
    """
    root = ET.fromstring(svg)
    root.set("viewBox", HEAD_AND_SHOULDERS)
    for side in ("width", "height"):  # otherwise resvg keeps the aspect ratio of the whole avatar
        root.attrib.pop(side)
    for group in list(root.iter()):
        for part, color in pairwise(list(group)):
            if color.get("mask") and color.get("id", "").endswith("-Color") and part.tag.endswith("}use"):
                part.set("fill", color.get("fill", ""))
                group.remove(color)
    return ET.tostring(root, encoding="unicode")
