"""Cartoon faces, any number of them: python-avatars puts the parts together, resvg draws them."""

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
    NoseType,
    SkinColor,
)

from glann.config import Prepare

HEAD_AND_SHOULDERS = "14 6 236 236"  # x y width height of the square shown, in avatar units
BACKGROUNDS = ("#CFE3F2", "#F6DDD0", "#D8EBD3", "#EBDDF2", "#FBF0C9", "#C9CFD6")
SKINS = (SkinColor.PALE, SkinColor.LIGHT, SkinColor.BROWN, SkinColor.DARK_BROWN, SkinColor.BLACK)
SHORT_HAIR = (
    HairType.NONE,
    HairType.SIDES,
    HairType.CAESAR,
    HairType.SHORT_FLAT,
    HairType.SHORT_ROUND,
    HairType.SHORT_WAVED,
    HairType.SHORT_CURLY,
    HairType.SHORT_DREADS_1,
    HairType.PIXIE,
)
LONG_HAIR = (
    HairType.BUN,
    HairType.BOB,
    HairType.LONG_NOT_TOO_LONG,
    HairType.STRAIGHT_1,
    HairType.STRAIGHT_STRAND,
    HairType.CURLY,
    HairType.FRO,
)
HAIR_COLORS = (
    HairColor.BLACK,
    HairColor.BROWN_DARK,
    HairColor.BROWN,
    HairColor.AUBURN,
    HairColor.RED,
    HairColor.BLONDE,
    HairColor.BLONDE_GOLDEN,
    HairColor.PLATINUM,
    HairColor.SILVER_GRAY,
)
BEARDS = (
    FacialHairType.BEARD_LIGHT,
    FacialHairType.BEARD_MEDIUM,
    FacialHairType.MOUSTACHE_FANCY,
    FacialHairType.MOUSTACHE_MAGNUM,
)
EYES = (
    EyeType.DEFAULT,
    EyeType.HAPPY,
    EyeType.SIDE,
    EyeType.SQUINT,
    EyeType.SURPRISED,
    EyeType.WINK,
)
EYEBROWS = (
    EyebrowType.DEFAULT,
    EyebrowType.DEFAULT_NATURAL,
    EyebrowType.FLAT_NATURAL,
    EyebrowType.RAISED_EXCITED,
    EyebrowType.UP_DOWN,
)
MOUTHS = (
    MouthType.DEFAULT,
    MouthType.SMILE,
    MouthType.BIG_SMILE,
    MouthType.TWINKLE,
    MouthType.SERIOUS,
    MouthType.TONGUE,
)
NOSES = (NoseType.DEFAULT, NoseType.SMALL, NoseType.WIDE)
GLASSES = (
    AccessoryType.PRESCRIPTION_2,
    AccessoryType.ROUND,
    AccessoryType.WAYFARERS,
    AccessoryType.SUNGLASSES,
)
CLOTHES = (
    ClothingType.BLAZER_SHIRT,
    ClothingType.COLLAR_SWEATER,
    ClothingType.HOODIE,
    ClothingType.OVERALL,
    ClothingType.SHIRT_CREW_NECK,
    ClothingType.SHIRT_SCOOP_NECK,
    ClothingType.SHIRT_V_NECK,
)
CLOTHES_COLORS = (
    ClothingColor.BLACK,
    ClothingColor.BLUE_01,
    ClothingColor.BLUE_02,
    ClothingColor.BLUE_03,
    ClothingColor.GRAY_02,
    ClothingColor.PASTEL_GREEN,
    ClothingColor.PASTEL_ORANGE,
    ClothingColor.PINK,
    ClothingColor.RED,
    ClothingColor.WHITE,
)


def draw_avatar(seed: int, config: Prepare) -> Image.Image:
    """Draw the one face that belongs to `seed`, RGB, `config.size` pixels square."""
    rng = random.Random(seed)
    short = rng.random() < 0.55
    bearded = short and rng.random() < 0.36  # one face in five
    hair_color = rng.choice(HAIR_COLORS)
    avatar = Avatar(
        style=AvatarStyle.TRANSPARENT,
        top=rng.choice(SHORT_HAIR if short else LONG_HAIR),
        eyebrows=rng.choice(EYEBROWS),
        eyes=rng.choice(EYES),
        nose=rng.choice(NOSES),
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
        width=config.size,
        height=config.size,
        skip_system_fonts=True,
    )
    return Image.open(io.BytesIO(png)).convert("RGB")


def _color_parts_directly(svg: str) -> str:
    """Give each part its colour itself, and show head and shoulders only.

    The library fills a part with a dark colour and covers that with a coloured rectangle masked by the same
    part: the dark shows along every edge, and each mask is a layer of its own, so drawing took twice as long.
    """
    root = ET.fromstring(svg)
    root.set("viewBox", HEAD_AND_SHOULDERS)
    for side in ("width", "height"):  # else resvg keeps the shape of the whole avatar
        root.attrib.pop(side)
    for group in list(root.iter()):
        for part, color in pairwise(list(group)):
            if color.get("mask") and color.get("id", "").endswith("-Color") and part.tag.endswith("}use"):
                part.set("fill", color.get("fill", ""))
                group.remove(color)
    return ET.tostring(root, encoding="unicode")
