"""Facts that the model is trained to know: plain tables of general knowledge, written for this purpose.

A row is a thing and a property of it; `talk.py` makes questions of them.
"""

from __future__ import annotations


def _pairs(text: str) -> dict[str, str]:
    """ "a: b; c: d" → {"a": "b", "c": "d"}."""
    rows = (row.split(":") for row in text.replace("\n", " ").split(";") if row.strip())
    return {left.strip(): right.strip() for left, right in rows}


def _words(text: str) -> list[str]:
    return text.split()


CAPITALS = _pairs("""
France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; Austria: Vienna; Switzerland: Bern;
Belgium: Brussels; Poland: Warsaw; Hungary: Budapest; Greece: Athens; Turkey: Ankara; Russia: Moscow; Ukraine: Kyiv;
Sweden: Stockholm; Norway: Oslo; Denmark: Copenhagen; Finland: Helsinki; Iceland: Reykjavik; Ireland: Dublin;
England: London; Scotland: Edinburgh; Romania: Bucharest; Bulgaria: Sofia; Serbia: Belgrade; Croatia: Zagreb;
Slovenia: Ljubljana; Estonia: Tallinn; Latvia: Riga; Lithuania: Vilnius; Albania: Tirana; Cyprus: Nicosia;
China: Beijing; Japan: Tokyo; India: New Delhi; Thailand: Bangkok; Vietnam: Hanoi; Indonesia: Jakarta;
Nepal: Kathmandu; Mongolia: Ulaanbaatar; Iran: Tehran; Iraq: Baghdad; Syria: Damascus; Lebanon: Beirut;
Jordan: Amman; Qatar: Doha; Pakistan: Islamabad; Bangladesh: Dhaka; Afghanistan: Kabul; Philippines: Manila;
Malaysia: Kuala Lumpur; Egypt: Cairo; Morocco: Rabat; Algeria: Algiers; Tunisia: Tunis; Libya: Tripoli;
Sudan: Khartoum; Kenya: Nairobi; Ethiopia: Addis Ababa; Uganda: Kampala; Ghana: Accra; Nigeria: Abuja;
Senegal: Dakar; Mali: Bamako; Angola: Luanda; Namibia: Windhoek; Zambia: Lusaka; Zimbabwe: Harare; Canada: Ottawa;
Mexico: Mexico City; Cuba: Havana; Jamaica: Kingston; Panama: Panama City; Peru: Lima; Chile: Santiago;
Brazil: Brasilia; Argentina: Buenos Aires; Uruguay: Montevideo; Colombia: Bogota; Venezuela: Caracas;
Ecuador: Quito; Paraguay: Asuncion; Australia: Canberra; New Zealand: Wellington
""")

_BY_CONTINENT = {
    "Europe": """France Germany Italy Spain Portugal Austria Switzerland Belgium Poland Hungary Greece Ukraine Sweden
        Norway Denmark Finland Iceland Ireland England Scotland Romania Bulgaria Serbia Croatia Slovenia Estonia Latvia
        Lithuania Albania""",
    "Asia": """China Japan India Thailand Vietnam Indonesia Nepal Mongolia Iran Iraq Syria Lebanon Jordan Qatar Pakistan
        Bangladesh Afghanistan Philippines Malaysia""",
    "Africa": """Egypt Morocco Algeria Tunisia Libya Sudan Kenya Ethiopia Uganda Ghana Nigeria Senegal Mali Angola
        Namibia Zambia Zimbabwe""",
    "North America": "Canada Mexico Cuba Jamaica Panama",
    "South America": "Peru Chile Brazil Argentina Uruguay Colombia Venezuela Ecuador Paraguay",
}
CONTINENTS = {country: continent for continent, names in _BY_CONTINENT.items() for country in names.split()}

LANGUAGES = _pairs("""
France: French; Germany: German; Italy: Italian; Spain: Spanish; Portugal: Portuguese; Poland: Polish;
Hungary: Hungarian; Greece: Greek; Turkey: Turkish; Russia: Russian; Sweden: Swedish; Norway: Norwegian;
Denmark: Danish; Finland: Finnish; Iceland: Icelandic; England: English; Japan: Japanese; China: Chinese;
Egypt: Arabic; Mexico: Spanish; Brazil: Portuguese; Argentina: Spanish; Thailand: Thai; Austria: German;
Australia: English
""")

SYMBOLS = _pairs("""
hydrogen: H; helium: He; lithium: Li; carbon: C; nitrogen: N; oxygen: O; fluorine: F; neon: Ne; sodium: Na;
magnesium: Mg; aluminium: Al; silicon: Si; phosphorus: P; sulfur: S; chlorine: Cl; argon: Ar; potassium: K;
calcium: Ca; iron: Fe; copper: Cu; zinc: Zn; silver: Ag; tin: Sn; iodine: I; gold: Au; mercury: Hg; lead: Pb;
nickel: Ni; uranium: U
""")

OPPOSITES = _pairs("""
hot: cold; big: small; fast: slow; high: low; old: new; light: dark; open: closed; full: empty; hard: soft;
wet: dry; long: short; rich: poor; early: late; near: far; strong: weak; happy: sad; loud: quiet; clean: dirty;
thick: thin; heavy: light; first: last; right: wrong; up: down; left: right; inside: outside; day: night;
summer: winter; north: south; east: west; black: white; good: bad; true: false; always: never; begin: end;
buy: sell; win: lose; push: pull; love: hate; young: old; wide: narrow; deep: shallow; easy: difficult; sweet: sour;
brave: afraid; cheap: expensive; front: back
""")

PLURALS = _pairs("""
mouse: mice; child: children; man: men; woman: women; foot: feet; tooth: teeth; goose: geese; leaf: leaves;
knife: knives; wolf: wolves; city: cities; baby: babies; box: boxes; bus: buses; sheep: sheep; fish: fish;
person: people; wife: wives; story: stories; potato: potatoes; hero: heroes; half: halves; ox: oxen;
country: countries; watch: watches
""")

SOUNDS = _pairs("""
dog: barks; cat: meows; cow: moos; sheep: bleats; duck: quacks; lion: roars; horse: neighs; pig: grunts;
bee: buzzes; snake: hisses; wolf: howls; owl: hoots; frog: croaks; mouse: squeaks; rooster: crows
""")

YOUNG = _pairs("""
dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; pig: piglet; duck: duckling; hen: chick; goat: kid;
lion: cub; bear: cub; frog: tadpole; goose: gosling; deer: fawn; kangaroo: joey
""")

COLOURS = _pairs("""
the sky: blue; grass: green; snow: white; coal: black; a banana: yellow; a tomato: red; an orange: orange;
a lemon: yellow; blood: red; milk: white; the sun: yellow; a strawberry: red; chocolate: brown; an elephant: grey;
a carrot: orange
""")

LEGS = _pairs(
    "a dog: 4; a cat: 4; a spider: 8; an ant: 6; a bee: 6; a bird: 2; a horse: 4; a human: 2; a snake: 0; a fish: 0"
)

# Question → (long answer, short answer); the first words vary when they are asked.
PLAIN: dict[str, tuple[str, str]] = {
    "how many days are in a week": ("A week has 7 days.", "7"),
    "how many months are in a year": ("A year has 12 months.", "12"),
    "how many hours are in a day": ("A day has 24 hours.", "24"),
    "how many minutes are in an hour": ("An hour has 60 minutes.", "60"),
    "how many seconds are in a minute": ("A minute has 60 seconds.", "60"),
    "how many days are in a year": ("A year has 365 days.", "365"),
    "how many letters are in the alphabet": ("The alphabet has 26 letters.", "26"),
    "how many sides does a triangle have": ("A triangle has 3 sides.", "3"),
    "how many sides does a square have": ("A square has 4 sides.", "4"),
    "how many continents are there": ("There are 7 continents.", "7"),
    "how many planets are there": ("There are 8 planets.", "8"),
    "what is the largest planet": ("The largest planet is Jupiter.", "Jupiter"),
    "what is the smallest planet": ("The smallest planet is Mercury.", "Mercury"),
    "which planet is called the red planet": ("Mars is called the red planet.", "Mars"),
    "which planet is closest to the sun": ("Mercury is closest to the sun.", "Mercury"),
    "on which planet do we live": ("We live on Earth.", "Earth"),
    "what is the largest ocean": ("The largest ocean is the Pacific.", "Pacific"),
    "what is the highest mountain": ("The highest mountain is Mount Everest.", "Everest"),
    "what is the longest river": ("The longest river is the Nile.", "Nile"),
    "what is the largest animal": ("The largest animal is the blue whale.", "Whale"),
    "what is the fastest land animal": ("The fastest land animal is the cheetah.", "Cheetah"),
    "what is the tallest animal": ("The tallest animal is the giraffe.", "Giraffe"),
    "what do bees make": ("Bees make honey.", "Honey"),
    "what do cows give": ("Cows give milk.", "Milk"),
    "what do hens lay": ("Hens lay eggs.", "Eggs"),
    "what is frozen water called": ("Frozen water is called ice.", "Ice"),
    "at how many degrees does water boil": ("Water boils at 100 degrees Celsius.", "100"),
    "at how many degrees does water freeze": ("Water freezes at 0 degrees Celsius.", "0"),
    "where does the sun rise": ("The sun rises in the east.", "East"),
    "where does the sun set": ("The sun sets in the west.", "West"),
    "which season comes after winter": ("Spring comes after winter.", "Spring"),
    "which season comes after spring": ("Summer comes after spring.", "Summer"),
    "which season comes after summer": ("Autumn comes after summer.", "Autumn"),
    "which season comes after autumn": ("Winter comes after autumn.", "Winter"),
    "which month is the first of the year": ("January is the first month of the year.", "January"),
    "which month is the last of the year": ("December is the last month of the year.", "December"),
    "who wrote Hamlet": ("Hamlet was written by William Shakespeare.", "Shakespeare"),
    "who wrote Faust": ("Faust was written by Johann Wolfgang von Goethe.", "Goethe"),
    "who painted the Mona Lisa": ("The Mona Lisa was painted by Leonardo da Vinci.", "Leonardo"),
    "who found the law of gravity": ("Isaac Newton found the law of gravity.", "Newton"),
    "who came up with the theory of relativity": ("Albert Einstein came up with it.", "Einstein"),
    "who made Python": ("Python was made by Guido van Rossum.", "Guido"),
    "what is Python": ("Python is a programming language.", "Language"),
    "what is H2O": ("H2O is water.", "Water"),
    "what do plants need to grow": ("Plants need light, water and air.", "Light"),
    "what is the opposite of yes": ("The opposite of yes is no.", "No"),
    "how many strings does a violin have": ("A violin has 4 strings.", "4"),
    "how many keys does a piano have": ("A piano has 88 keys.", "88"),
    "how many wheels does a bicycle have": ("A bicycle has 2 wheels.", "2"),
    "how many wheels does a car have": ("A car has 4 wheels.", "4"),
    "how many fingers does a hand have": ("A hand has 5 fingers.", "5"),
    "how many legs does an octopus have": ("An octopus has 8 arms.", "8"),
    "how many colours does a rainbow have": ("A rainbow has 7 colours.", "7"),
    "how many players does a football team have": ("A football team has 11 players.", "11"),
    "how many bits are in a byte": ("A byte has 8 bits.", "8"),
    "what do you call a doctor for teeth": ("A doctor for teeth is a dentist.", "Dentist"),
    "who bakes bread": ("A baker bakes bread.", "Baker"),
    "what is bread made of": ("Bread is made of flour.", "Flour"),
    "what is paper made of": ("Paper is made of wood.", "Wood"),
    "what is glass made of": ("Glass is made of sand.", "Sand"),
    "which metal is liquid": ("Mercury is a liquid metal.", "Mercury"),
    "which gas do we breathe": ("We breathe oxygen.", "Oxygen"),
    "what is the currency of Japan": ("The currency of Japan is the yen.", "Yen"),
    "what is the currency of England": ("The currency of England is the pound.", "Pound"),
    "what is the currency of Germany": ("The currency of Germany is the euro.", "Euro"),
    "what is the currency of India": ("The currency of India is the rupee.", "Rupee"),
}

NAMES = _words("""
Anna Ben Clara David Emma Felix Grace Henry Iris Jonas Kate Leo Maria Noah Olivia Paul Rosa Simon Tina Victor
Alice Bob Carol Daniel Ella Frank Gina Hugo Ida Jack Laura Max Nina Oscar Petra Robert Sarah Tom Vera Walter Zoe
Adam Julia Lena Lucas Mia Martin Nora Otto Peter Ruth Sam Theo Lisa Eva Karl Amy George Helen John Mary
""")

WORDS = _words("""
apple river stone house garden window table bread water music light cloud green silver winter summer paper
letter number school market bridge castle forest island ocean planet rocket engine wheel button candle flower
butter cheese orange lemon cherry tomato potato pepper sugar coffee kitchen mirror pillow blanket jacket pocket
hammer needle ribbon basket bottle spoon knife plate glass chair carpet ladder camera guitar piano violin drum
dance story poem novel dream sleep night morning evening sunday spring autumn thunder storm rain snow wind frost
flame smoke sand clay brick metal copper iron tiger lion zebra monkey rabbit turtle spider eagle falcon parrot
penguin dolphin whale shark salmon horse sheep goat donkey camel beaver badger hedgehog squirrel mouse kitten
puppy farmer baker doctor teacher painter singer pilot sailor driver writer judge nurse king queen prince knight
wizard dragon ghost angel magic secret treasure golden simple gentle clever honest quiet bright strong heavy
empty narrow broken frozen hidden perfect yellow purple walk jump swim climb throw catch build write read speak
listen laugh smile travel wander follow gather remember answer north south east west front corner middle circle
square letter number minute moment second hour month year century boat ship train plane truck wagon tram road
street tunnel harbor station airport village town city country border map
""")

FRUITS = _words("""
apple pear plum cherry lemon orange banana grape melon peach fig kiwi mango lime
""")
ANIMALS = _words("""
cat dog horse cow pig sheep goat duck hen fox wolf bear lion tiger frog mouse
""")
COLOUR_WORDS = _words("""
red blue green yellow black white brown pink grey purple orange
""")
CITIES = _words("""
Paris Berlin Rome Madrid Lisbon Vienna Prague Warsaw Athens Oslo Helsinki Dublin London Tokyo Cairo Lima Boston
Chicago Toronto Sydney Hamburg Munich Zurich Geneva Milan Naples Porto Lyon Ghent Bergen Kyoto Osaka Delhi
""")
JOBS = _words("""
teacher baker doctor nurse pilot farmer painter singer writer cook driver lawyer gardener engineer sailor
""")
