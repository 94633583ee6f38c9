"""The words that the generators draw from: common and short, one or two tokens in most tokenizers."""

from __future__ import annotations

_WORDS = """
apple arrow autumn bakery balloon banana barrel basket beach berry bicycle bird blanket blossom boat bottle branch
bread bridge brother brush bucket butter button cabin camel camera candle canyon captain carpet castle cellar chair
cherry chicken circle city clock cloud coffee copper corner cotton cousin cradle cricket crystal curtain dancer
desert diamond dinner doctor dolphin dragon drawer eagle earth engine evening falcon farmer feather fence ferry
finger flower forest fossil fountain friend garden ginger glass glove goose grape guitar hammer harbor harvest
helmet honey horse island jacket jungle kettle kitchen kitten ladder lantern lemon letter library lizard magnet
market meadow melon mirror monkey morning mountain museum needle night ocean olive onion orange orchard oven
owl paint palace paper parrot pasture pepper piano picture pillow pirate planet pocket potato puzzle rabbit
radio rain ribbon river road rocket sailor salad school shadow sheep silver singer sister spider spoon spring
square stable station stone storm summer table teacher temple thunder ticket tiger tomato tower tractor train
tunnel turtle valley village violin wagon walnut water whale wheat window winter wizard yellow zebra
"""
WORDS = tuple(_WORDS.split())

_FIRST_NAMES = """
Ada Adam Alice Amir Anna Ben Carla Chen Clara Daniel David Diana Elena Emil Emma Eva Felix Fiona Grace Hana Hugo
Ines Ivan Jack Jana Julia Karim Kate Lena Leo Lily Lucas Maria Marta Max Mia Mina Nadia Nina Noah Nora Olga Omar
Oscar Paul Peter Priya Rosa Ruth Sam Sara Sofia Tara Theo Tom Vera Victor Yuki Yusuf Zoe
"""
FIRST_NAMES = tuple(_FIRST_NAMES.split())

_LAST_NAMES = """
Adams Ali Baker Bell Brown Carter Chen Clark Costa Cruz Davis Diaz Evans Fischer Fox Garcia Gray Green Hall Hill
Ito Jones Kaya Khan Kim King Klein Lee Lopez Meyer Mori Moore Nagy Novak Okoye Park Patel Price Reed Rossi Sato
Silva Singh Smith Stone Tan Turner Vega Weber West White Wong Wood Young
"""
LAST_NAMES = tuple(_LAST_NAMES.split())
