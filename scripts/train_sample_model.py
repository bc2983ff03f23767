"""Train the sample model: a tiny BERT sentiment classifier, from nothing, in a few minutes.

    python scripts/train_sample_model.py --output sample_data/tiny-sentiment

The training text is composed here, from a lexicon and a grammar written for this project: no public
data set and no pretrained weights are used. Some sentence patterns and a list of hand-written
reviews are held out of training to measure how well the model copes with sentences it has not
seen. The sample reviews of ``make_sample_reviews.py`` come from other stock and are only read at
the very end, to state the accuracy on them in the model card.

How the grammar works: a pattern is a sentence with slots. ``{adj}`` takes a word of the wanted
polarity, ``{~adj}`` one of the opposite polarity, so "not {~adj} at all" gives "not slow at all"
for a positive review and "not tasty at all" for a negative one. Slots may hold further slots.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sample_text import items
from sample_training import (
    BERT_TOKENS,
    SAMPLES,
    Score,
    bert_tokenizer,
    logits_of,
    num_parameters,
    optimize,
    save,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.trainers import WordPieceTrainer
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

DEFAULT_SEED = 7
DEFAULT_STEPS = 1600
LABELS = {0: "negative", 1: "positive"}
MAX_LENGTH = 128

NEGATIVE = 0
POSITIVE = 1

# --- Lexicon. Each slot has a positive and a negative list, or a single neutral one. -------------

ADJECTIVES = (
    """
    good|great|excellent|wonderful|fantastic|amazing|awesome|superb|brilliant|lovely|perfect
    beautiful|gorgeous|stunning|fabulous|terrific|outstanding|splendid|marvellous|magnificent
    delightful|charming|pleasant|nice|fine|decent|solid|sturdy|robust|durable|reliable|dependable
    trustworthy|comfortable|comfy|cosy|cozy|soft|smooth|quiet|silent|handy|practical|useful|helpful
    efficient|effective|fast|quick|swift|speedy|snappy|responsive|precise|accurate|consistent
    clear|crisp|sharp|bright|vivid|clean|spotless|tidy|neat|fresh|tasty|delicious|yummy|juicy
    tender|crunchy|flavourful|mouthwatering|generous|affordable|cheap and cheerful|inexpensive
    fair|reasonable|priceless|valuable|worthwhile|impressive|remarkable|incredible|unbeatable
    exceptional|extraordinary|phenomenal|sensational|spectacular|breathtaking|exquisite|elegant
    stylish|classy|sleek|smart|clever|ingenious|thoughtful|well made|well built|well designed
    well thought out|top notch|first class|first rate|second to none|spot on|simple|easy|intuitive
    effortless|painless|straightforward|user friendly|hassle free|flawless|faultless|immaculate
    ideal|suitable|satisfying|rewarding|enjoyable|entertaining|engaging|gripping|thrilling
    fascinating|captivating|moving|touching|funny|hilarious|witty|uplifting|inspiring|refreshing
    relaxing|soothing|calming|warm|safe|secure|stable|versatile|flexible|lightweight|compact
    spacious|roomy|bright and airy|high quality|premium|authentic|genuine|rich|deep|powerful|strong
    adorable|cute|pretty|attractive|flattering|breathable|waterproof|odourless|unforgettable
    memorable|magical|heavenly|divine|sublime|glorious|super|cool|ace|fab|grand|marvelous
    better than expected|worth it|worth the money|worth every penny|great value|a pleasure to use
    convenient|organised|organized|professional|punctual|prompt|courteous|welcoming|friendly
    gentle|healthy|hygienic|harmonious|balanced|snug|supportive|springy|cushioned|sensible|honest
    polished|refined|mature|original|imaginative|creative|believable|convincing|rich in flavour
    legible|readable|likeable|lovable|pleasing|admirable|commendable|tremendous|stellar|epic
    """,
    """
    bad|terrible|awful|horrible|dreadful|poor|lousy|crap|crappy|rubbish|garbage|useless|worthless
    pointless|hopeless|disappointing|underwhelming|unsatisfactory|unacceptable|inadequate|mediocre
    inferior|substandard|shoddy|flimsy|fragile|brittle|weak|faulty|defective|broken|damaged
    dysfunctional|unreliable|inconsistent|unstable|unsafe|dangerous|hazardous|risky|uncomfortable
    painful|itchy|scratchy|rough|hard as a rock|noisy|loud|deafening|annoying|irritating
    infuriating|frustrating|maddening|tiresome|tedious|boring|dull|bland|tasteless|flavourless
    stale|soggy|greasy|oily|burnt|undercooked|overcooked|raw|rotten|mouldy|sour|bitter|disgusting
    revolting|gross|nasty|vile|foul|smelly|stinky|dirty|filthy|grubby|sticky|dusty|stained|shabby
    worn out|run down|ugly|hideous|tacky|cheap looking|tatty|slow|sluggish|laggy|glitchy|buggy
    clunky|clumsy|awkward|confusing|complicated|cumbersome|impractical|inconvenient|overpriced
    too expensive|too small|too short|too tight|too heavy|too loud|too slow|too thin|too weak
    unfair|dishonest|misleading|deceptive|fraudulent|shady|dodgy|suspicious|rude|unfriendly
    unhelpful|incompetent|careless|sloppy|lazy|arrogant|impolite|disrespectful|unprofessional
    hostile|aggressive|cold and indifferent|chaotic|disorganised|disorganized|messy|cluttered
    cramped|crowded|claustrophobic|dark and damp|damp|draughty|freezing|sweaty|stuffy|blurry
    grainy|fuzzy|muffled|tinny|distorted|crackly|patchy|inaccurate|wrong|incorrect|incomplete
    late|delayed|overdue|missing|lost|ruined|wasted|spoiled|unusable|unwatchable|unreadable|inedible
    unbearable|intolerable|miserable|depressing|dismal|abysmal|atrocious|appalling|shocking
    shameful|disgraceful|outrageous|ridiculous|laughable|pathetic|embarrassing|insulting|offensive
    predictable|cliched|shallow|wooden|lifeless|forgettable|unconvincing|implausible|incoherent
    sad|grim|harsh|toxic|poisonous|unhealthy|unhygienic|a letdown|a waste|not worth it|overrated
    overhyped|problematic|terrifying|stressful|exhausting|nauseating|sickening|horrendous|horrid
    ghastly|the worst|a nightmare|a disgrace|bloody awful|leaky|wobbly
    rickety|crooked|uneven|scratched|dented|cracked|torn|ripped|rusty|frayed|faded|shrunken
    slippery|lumpy|saggy|stiff|bulky|unwieldy|temperamental|erratic|invasive|greedy|stingy
    """,
)

# Said of people only.
PERSON_ADJECTIVES = (
    """
    friendly|kind|polite|helpful|patient|attentive|caring|courteous|professional|welcoming|warm
    cheerful|considerate|honest|knowledgeable|competent|skilled|talented|gentle|generous|sweet
    thoughtful|respectful|lovely|charming|funny|smiling|understanding|responsive|punctual|tidy
    hard working|quick to reply|great with kids|great with animals|a star|a gem|an angel
    on the ball|easy to talk to|super nice|always smiling|hospitable|reassuring|thorough|careful
    """,
    """
    rude|unfriendly|unhelpful|impatient|grumpy|arrogant|careless|dishonest|incompetent|lazy|cold
    aggressive|hostile|disrespectful|condescending|dismissive|clueless|unprofessional|sloppy|nasty
    patronising|ignorant|moody|bored|indifferent|inattentive|impolite|insulting|pushy|greedy
    useless|hopeless|late|unreachable|a bully|a liar|a crook|a joke|glued to the phone|in a foul mood
    always late|never there|abrupt|snappy|smug|sleazy|rough|forgetful|unreliable|drunk|surly
    """,
)

NOUNS = (
    """
    joy|pleasure|delight|bargain|gem|treasure|treat|winner|masterpiece|success|big improvement
    blessing|lifesaver|game changer|dream|dream come true|hidden gem|steal|triumph|work of art
    real find|great buy|great choice|must have|keeper|classic|wonder|little miracle|pleasant surprise
    lovely surprise|breath of fresh air|five star experience|godsend|stroke of genius|perfect gift
    good investment|wise choice|great deal|star|hit|crowd pleaser|real beauty|marvel|revelation
    favourite|success story|piece of heaven|happy discovery|feast|highlight|page turner|best buy
    """,
    """
    disaster|nightmare|mess|joke|bad joke|scam|rip off|disappointment|letdown|failure|waste of money
    waste of time|waste of space|catastrophe|fraud|swindle|disgrace|insult|farce|shambles|flop|dud
    lemon|piece of junk|piece of rubbish|piece of trash|piece of garbage|pile of rubbish|big mistake
    bad idea|bad dream|torture|pain|pain in the neck|headache|horror|horror show|shame|eyesore
    health hazard|death trap|money pit|con|trap|cheat|fiasco|misery|bore|ordeal|chore|embarrassment
    nuisance|cheap imitation|cheap copy|poor excuse|sad excuse|missed opportunity|one star experience
    """,
)

VERBS_BASE = (
    """
    love|like|enjoy|adore|recommend|appreciate|treasure|cherish|admire|praise|trust|highly recommend
    really like|really love|absolutely love|truly enjoy|celebrate|applaud|value|highly rate
    """,
    """
    hate|dislike|regret|detest|despise|loathe|resent|can't stand|really hate|bitterly regret|curse
    absolutely hate|deeply regret|strongly dislike|warn everyone about|complain about|distrust
    """,
)

VERBS_PAST = (
    """
    loved|liked|enjoyed|adored|appreciated|treasured|admired|absolutely loved|really liked
    really enjoyed|fell in love with|was delighted with|was pleased with|was impressed by
    was thrilled with|was happy with|was blown away by|was amazed by|thoroughly enjoyed|was charmed by
    """,
    """
    hated|disliked|regretted|detested|despised|loathed|absolutely hated|bitterly regretted
    was disappointed by|was let down by|was annoyed by|was appalled by|was disgusted by|was fed up with
    was unhappy with|was frustrated by|was shocked by|was bored by|was horrified by|was sick of
    """,
)

FEELINGS = (
    """
    happy|delighted|thrilled|pleased|satisfied|impressed|overjoyed|grateful|thankful|glad|in love
    excited|amazed|over the moon|blown away|relieved|proud|content|hooked|a big fan|a happy customer
    enchanted|relaxed|well rested|spoiled in a good way|pleasantly surprised|well looked after
    positively surprised|in good hands|at home|welcome|moved to tears of joy|fully convinced
    """,
    """
    unhappy|disappointed|annoyed|angry|furious|frustrated|upset|dissatisfied|disgusted|appalled
    fed up|let down|ripped off|cheated|sad|shocked|horrified|bored|bored to tears|irritated
    embarrassed|ashamed|stressed|exhausted|sick|miserable|outraged|livid|gutted|robbed|fooled
    tricked|ignored|insulted|humiliated|unwelcome|helpless|desperate|lied to|bitter|worried|in pain
    scared|unsafe|conned|treated like dirt|speechless with anger|close to tears|sorry I bought it
    """,
)

ADVERBS_OF_QUALITY = (
    """
    perfectly|beautifully|flawlessly|wonderfully|brilliantly|well|very well|really well|smoothly
    superbly|nicely|reliably|quickly|without a hitch|like a charm|like a dream|like new|like clockwork
    without any problems|without fail|first time|every time|as promised|as described|as advertised
    as it should|exactly as it should|better than ever|a treat|effortlessly|with ease|in no time
    even in bad conditions|to perfection|amazingly|from day one|straight out of the box|fine
    better than I hoped|without any fuss|without effort|in one go|quietly|just right
    """,
    """
    badly|terribly|poorly|horribly|awfully|barely|hardly|only half the time|only when it wants to
    worse every day|like rubbish|like garbage|once and then never again|for a week and then stopped
    for five minutes|only sometimes|not at all|at a snail's pace|worse than before|with errors
    for exactly one day|worse than a toy|unreliably|far too slowly|under protest|in slow motion
    only if you are lucky|only after many tries|only on paper|only for a month
    """,
)

# Things that are good or bad to have.
QUALITIES = (
    """
    quality|comfort|charm|style|flavour|taste|good ideas|attention to detail|value|support|warmth
    fun|laughter|surprises of the nice kind|character|heart|humour|energy|love|care|passion
    good food|fresh ingredients|great service|nice people|clever features|lovely details|beauty
    peace and quiet|clean air|good memories|smiles|hot water|space|light|privacy|freedom|power|grip
    battery life|depth|suspense|tension|free extras|discounts|compliments|joy|kindness|wit|soul
    """,
    """
    problems|trouble|errors|bugs|faults|defects|flaws|issues|mistakes|glitches|delays|noise|dirt
    dust|mould|mold|stains|scratches|cracks|dents|holes|leaks|rust|smells|smoke|flies|cockroaches
    insects|mosquitoes|ants|rats|rubbish|hidden costs|hidden fees|extra fees|ads|adverts|spam|lies
    excuses|empty promises|broken promises|complaints|arguments|stress|pain|headaches|back pain
    blisters|bruises|sores|rashes|cramps|crashes|outages|interruptions|dropouts|static|flickering
    dead pixels|typos|plot holes|cliches|long waits|queues|crowds|traffic noise|shouting|chaos
    confusion|nonsense|junk|gimmicks|regrets|disappointments|bad surprises|annoyances|hassle|fuss
    red tape|fake reviews|splinters|sharp edges|loose screws|loose threads|missing parts|bad smells
    sleepless nights|injuries|burns|cuts|damage|wear and tear|mess|bad memories|hair in the drain
    """,
)

# Verbs for things that go wrong, with the forms the rules below would get wrong given in full.
FAULT_VERBS = """
break/breaks/broke/broken/breaking|crack|snap/snaps/snapped/snapped/snapping|leak
drip/drips/dripped/dripped/dripping|rust|fade|tear/tears/tore/torn/tearing
rip/rips/ripped/ripped/ripping|shrink/shrinks/shrank/shrunk/shrinking|peel|crumble|wobble|squeak
rattle|creak|buzz|hiss|crackle|stink/stinks/stank/stunk/stinking|smell|overheat
freeze/freezes/froze/frozen/freezing|crash|lag/lags/lagged/lagged/lagging|stutter
jam/jams/jammed/jammed/jamming|slip/slips/slipped/slipped/slipping|fail|die|collapse
burst/bursts/burst/burst/bursting|split/splits/split/split/splitting|bend/bends/bent/bent/bending
warp|melt|burn|scratch|stain|itch|hurt/hurts/hurt/hurt/hurting|ache|pinch|chafe|disconnect
drop out/drops out/dropped out/dropped out/dropping out|whine
sag/sags/sagged/sagged/sagging|sink/sinks/sank/sunk/sinking|clog/clogs/clogged/clogged/clogging
fall apart/falls apart/fell apart/fallen apart/falling apart
fall off/falls off/fell off/fallen off/falling off
fall out/falls out/fell out/fallen out/falling out
come apart/comes apart/came apart/come apart/coming apart
come off/comes off/came off/come off/coming off|come loose/comes loose/came loose/come loose/coming loose
give up/gives up/gave up/given up/giving up|wear out/wears out/wore out/worn out/wearing out
shut off/shuts off/shut off/shut off/shutting off|shut down/shuts down/shut down/shut down/shutting down
cut out/cuts out/cut out/cut out/cutting out|turn itself off|switch itself off|tip over|fray|unravel
get stuck/gets stuck/got stuck/got stuck/getting stuck|blow up/blows up/blew up/blown up/blowing up
flicker|scream|shriek|misbehave|malfunction|loosen|disintegrate|discolour|explode|spill|smoke
catch fire/catches fire/caught fire/caught fire/catching fire|lose power/loses power/lost power/lost power/losing power
go dead/goes dead/went dead/gone dead/going dead|go silent/goes silent/went silent/gone silent/going silent
go wrong/goes wrong/went wrong/gone wrong/going wrong
"""

# Verbs for things that do their job.
FUNCTION_VERBS = """
work|function|fit/fits/fitted/fitted/fitting|hold/holds/held/held/holding|last|charge|connect|pair
sync|load|open|close|start|turn on|respond|stay put/stays put/stayed put/stayed put/staying put|lock
clean|cut/cuts/cut/cut/cutting|cook|heat up|cool down|protect|stick/sticks/stuck/stuck/sticking
grip/grips/gripped/gripped/gripping|record|scan/scans/scanned/scanned/scanning|print|update|deliver
dry|wash|run/runs/ran/run/running|do its job/does its job/did its job/done its job/doing its job
do what it should/does what it should/did what it should/done what it should/doing what it should
keep its shape/keeps its shape/kept its shape/kept its shape/keeping its shape|play|light up|recharge
"""

# What staff and firms do to people: "they {acted}".
ACTS = (
    """
    helped us|helped me with everything|thanked us|welcomed us warmly|greeted us with a smile
    listened to me|explained everything|explained it twice without a sigh|apologised at once
    apologized and fixed it|fixed it for free|fixed the problem right away|refunded me right away
    refunded me the same day|sent me a new one for free|sent a replacement the next day|smiled at us
    waited for us|remembered my name|remembered us|looked after us|looked after my mother
    took good care of us|took their time|took the time to answer all my questions|called me back
    replied within an hour|replied within minutes|answered on a Sunday|gave us a discount
    gave us a free drink|gave me a free sample|gave us a bigger room|offered us tea
    offered a refund without being asked|went the extra mile|went out of their way to help
    stayed open for us|stayed late for us|carried our bags|carried it upstairs for me
    cleaned up after themselves|kept their word|kept every promise|kept me informed
    made us feel at home|made us feel welcome|made me laugh|made my day|saved the day
    treated us like family|treated me with respect|calmed me down|put me at ease|held the door for us
    found my lost keys|returned my lost wallet|let me change the date for free
    let us try everything|let us check in early|did a great job|did an amazing job|did it right
    solved it in five minutes|solved my problem|came at once|came right on time|arrived on time
    showed up early|finished early|charged me less than agreed|gave honest advice|knew their stuff
    wrapped it beautifully|added a hand written note|threw in a free extra|thought of everything
    were there when I needed them|were so good to my kids|couldn't do enough for us
    cheered us up|played with the children|brought water for the dog|sorted it out
    """,
    """
    ignored us|ignored my emails|ignored my calls|ignored every message|shouted at us|yelled at me
    snapped at my mother|lied to me|lied about the price|laughed at me|laughed in my face
    overcharged me|charged me twice|charged my card again|cheated me|hung up on me|forgot about us
    forgot our order|forgot half of it|lost my order|lost my parcel|lost our luggage|lost my data
    refused to help|refused to refund me|refused to take it back|refused to listen|blamed me
    blamed the weather|blamed somebody else|insulted us|insulted my wife|kept us waiting
    kept me waiting for hours|kept my deposit|kept my money|misled me|sent me away
    sent the wrong size|sent the wrong colour|sent me a used one|sent me a broken one
    sent me someone else's order|cancelled at the last minute|cancelled without telling me
    never answered|never replied|never called back|never showed up|never turned up|never apologised
    didn't care|didn't listen|didn't even look at me|didn't say a word|didn't lift a finger
    broke their promise|broke my things|broke my window|damaged my car|damaged our floor
    ruined my birthday|ruined our evening|ruined the carpet|ruined my shirt|spoiled the evening
    wasted my time|took my money and ran|took weeks to answer|took forever|passed me around
    made me wait|made me pay extra|made me feel stupid|made us feel unwelcome|made my son cry
    treated us like dirt|treated me like an idiot|threatened me|stared at us|stole from us
    opened my mail|left us standing in the rain|left us in the cold|left a mess|left me stranded
    left it half finished|left early|came late|arrived three hours late|showed up drunk
    put the price up|raised the price|doubled the bill|added fees|sold my data|sold me a fake
    deleted my account|locked me out|blocked me|hid behind the small print|rolled their eyes at me
    couldn't care less|couldn't answer a simple question|did nothing|did it all wrong
    did half the job|messed it up|made it worse|had no clue|were no help|would not let us in
    pretended not to hear us|talked over me|slammed the door|walked off|argued with us|mocked me
    """,
)

# What I did because of it.
REACTIONS = (
    """
    bought a second one|bought another one for my mother|bought one for every room
    ordered two more|ordered it again|ordered more the same day|told all my friends
    told everyone at work|recommended it to my whole family|use it every single day
    use it all the time|wear it everywhere|take it everywhere|never leave home without it
    never want to be without it|never looked back|couldn't stop smiling|smiled all day
    laughed until I cried|danced in the kitchen|slept like a log|slept wonderfully|went back twice
    went back the next day|went back for more|will be back|will come again|will definitely return
    will buy again|will order again|will keep it|am keeping it|can't wait to go back
    can't wait for the next one|can't stop talking about it|can't live without it
    can't put it down|can't get enough of it|would buy it again|would go again any time
    would give it ten stars|would pay double|joined on the spot|signed up for another year
    renewed straight away|left a big tip|left with a big smile|finished it in one sitting
    read it twice|watched it again|stayed another night|stayed up all night to finish it
    forgot the time|forgot all my worries|feel ten times better|feel so much better|feel healthier
    look forward to it every day|want another one|finally sleep through the night|gave it five stars
    got so many compliments|get compliments all the time|saved a lot of money|save hours every week
    have no complaints|have nothing bad to say|have never been happier|booked again right away
    booked the same place for next year|wish I had bought it earlier|wish I had done this years ago
    """,
    """
    returned it|returned it the same day|sent it back|sent it straight back|took it back to the shop
    asked for a refund|asked for my money back|demanded a refund|want a refund|want my money back now
    threw it away|threw it in the bin|threw it out|put it in the trash|binned it|gave it away
    gave up|gave up after an hour|gave up on it|stopped reading|stopped using it|stopped going
    stopped watching|stopped halfway|deleted it|deleted it after a day|uninstalled it
    cancelled my account|cancelled my subscription|cancelled the order|cancelled everything
    complained to the manager|complained twice|reported them|called my bank|called a lawyer
    left after ten minutes|left early|left hungry|left in tears|walked out|walked out in the middle
    fell asleep|nearly fell asleep|almost fell over|almost cried|cried|got a rash|got sick|felt sick
    got a headache|got a sore neck|got blisters|got food poisoning|got lost|got wet|got burned
    got ripped off|got nothing in return|got no answer|had to pay twice|had to pay again
    had to wait for hours|had to wait forever|had to throw it away|had to send it back
    had to buy a new one|had to buy another brand|had to do it all again|had to fix it myself
    had to redo everything|had to call five times|had to leave|had to go to the doctor
    had to clean it myself|had to restart it again and again|lost all my data|lost all my photos
    lost my patience|lost a lot of money|lost a whole day|lost interest|wasted a whole day
    wasted my money|wasted an entire evening|will never buy it again|will never go back
    will never come again|will never order here again|will not be back|won't be back
    won't buy from them again|won't go there again|won't recommend it|wouldn't go again
    wouldn't buy it again|would give zero stars|switched to another brand|went back to my old one
    went somewhere else|went home angry|ended up with nothing|could not sleep|couldn't sleep at all
    couldn't eat it|couldn't use it|couldn't finish it|can't use it|can't recommend it|can't sleep
    am still waiting for my money|am still waiting for an answer|am still angry
    wish I had never bought it|wish I had kept my old one|wish I could get my time back
    hurt my back|hurt my hand|cut my finger|burned my fingers|bruised my knee|broke a tooth
    """,
)

# Whole clauses that tell a fact, and the opinion only through it.
FACTS = (
    """
    it still works after {long_time}|it still looks new after {long_time}|still going strong
    still as good as on the first day|it has never let me down|it has never failed me
    after {long_time} there is not a single scratch|it survived {ordeal}|it survives everything
    it took only {short_time} to set up|I had it running in {short_time}|set up was a breeze
    even {person} can use it|even {person} was impressed|even {person} liked it|{person} loves it
    {person} keeps borrowing it|{person} wants one too|{person} can't stop using it
    {person} is happier than ever|{person} was all smiles|{person} asked for the recipe
    everyone asks me where I got it|the children love it|the kids had a great time
    the kids couldn't get enough|the kids didn't want to leave|the dog loves it too
    it looks exactly like the photo|it looks even better than in the picture|looks expensive
    it arrived early|it arrived sooner than expected|it arrived in perfect condition
    it came well packed|it came with free extras|delivered the next day|arrived right on time
    it fits like a glove|it fits perfectly|it fits into any pocket|it feels like a second skin
    it feels solid in the hand|it feels luxurious|it feels light as a feather|my {body} no longer hurts
    my {body} feels so much better|no more pain in my {body}|the pain is gone|my skin feels great
    it saves me a lot of time|it saves me {amount} a month|it paid for itself in {short_time}
    it makes life easier|it makes my day|it makes me smile|it makes me laugh|it made our day
    it makes everything look good|it turned a bad day into a good one|the price is right
    you won't find a better one|you can't go wrong with it|you can't beat the price
    you get what you pay for and more|nothing was too much trouble|every bite was a delight
    every page was a pleasure|every minute was worth it|there is plenty of room
    there was always a smile|there is nothing to criticise|there is nothing I would change
    the instructions are easy to follow|the instructions are clear|the battery lasts for days
    the battery lasts forever|the battery lasts longer than they say|one charge lasts all week
    the sound fills the room|the sound is clear as a bell|you hear every note|you hear every word
    the picture is razor sharp|the colours pop|the pictures come out great|the view is to die for
    the bed was like a cloud|the sheets were fresh|the room was bigger than expected
    the room was quiet|the food melts in your mouth|the food came quickly and was hot
    the portions were huge|the plates were full|the bill was lower than expected
    the story pulls you in|the story stays with you|the ending surprised me|the jokes land
    the actors are at their best|the time flew by|I was hooked from the first page
    I was on the edge of my seat|I laughed a lot|I learned so much|I felt safe the whole time
    I felt right at home|I passed the exam thanks to this|I can finally breathe|I can finally relax
    it heals quickly|it keeps me warm|it keeps me dry|it keeps drinks cold all day
    it keeps my coffee hot|it cleans everything|it cleans up after itself|it removes every stain
    stains come right out|it cuts through anything|it handles everything I throw at it
    it runs quiet as a mouse|you can hardly hear it|you hardly notice it|it wakes up in a second
    it connects right away|it connects on the first try|it starts at once|it opens in a blink
    it has a place of honour in our kitchen|it has not lost its shape|it has improved a lot
    they got it exactly right|they really know what they are doing|they think of everything
    they answer every question|they deliver what they promise|they deserve all the praise
    they cost half as much as the others|cheaper than everywhere else|a lot for little money
    a big step up from my old one|way ahead of the rest|a cut above the rest|in a league of its own
    it was free of charge|no extra cost|all included|more than I asked for|more than I paid for
    it was ready in minutes|it was over in a flash|they were done in an hour|smelled heavenly
    it smells lovely|the whole house smells good|it tastes like home|it tastes like summer
    I lost weight and feel great|I made new friends|my test results are better|I sleep better now
    we had the best time|we had a wonderful evening|we had so much fun|we had a ball
    we came as guests and left as friends|we celebrated and it was magical|we didn't want it to end
    it was worth the wait|it was worth the drive|it was worth the price|it was worth getting up for
    free refills|a warm welcome|lots of leg room|a smooth ride|a happy end|happy faces all round
    """,
    """
    it stopped working after {short_time}|it broke after {short_time}|it broke on the first day
    it lasted {short_time}|it was dead on arrival|it was dead after {short_time}|it never worked
    it didn't survive {short_time}|it didn't even last {short_time}|it fell to pieces
    the {part} came off in my hand|the {part} broke off|the {part} was missing|the {part} is loose
    the {part} is already worn out|the {part} doesn't close|the {part} won't stay on
    the {part} was scratched when it came|the {part} is made of thin plastic|the {part} got stuck
    half of the parts were missing|pieces were missing|the box was empty|the box was crushed
    the box had been opened before|it had clearly been used before|it arrived broken
    it arrived in pieces|it arrived with a big crack|it arrived {long_time} late
    it arrived wet|it arrived without the {part}|it never arrived|it never came|nothing arrived
    it was the wrong colour|it was the wrong size|it was not what I ordered|it is the wrong one
    it looks nothing like the photo|it looks cheap|it looks like a toy|it looks like a cheap copy
    it feels cheap|it feels like plastic|it smells like {stench}|it smelled of {stench}
    it tastes like {stench}|it tasted of {stench}|the room smelled of {stench}
    the whole house smelled of {stench}|it stinks to high heaven|it leaves stains everywhere
    it leaves scratches|it leaves a mess|it leaves a bad taste|it ruined my {belonging}
    it destroyed my {belonging}|it damaged my {belonging}|it scratched my {belonging}
    it left marks on my {belonging}|it burned a hole in my {belonging}|my {belonging} got wet
    my {body} hurts|my {body} still hurts|my {body} aches after using it|it hurts my {body}
    it hurt my {body}|it cuts into my {body}|it rubs my {body} raw|my {body} is sore
    my skin turned red|it gave me a rash|it gave me a headache|it gave me blisters
    it made me sick|it made us sick|it made my {body} hurt|we all got sick|we were sick for days
    I waited {long_time} for a reply|I waited {long_time} for nothing|still no answer
    still no refund|still no sign of it|nobody answers the phone|nobody answered my emails
    nobody helped us|nobody came|nobody cared|nobody could tell us anything|no one showed up
    no one was there|no reply to my emails|no refund and no apology|no apology whatsoever
    they charged me {amount} for nothing|they charged me {amount} more than agreed
    they charge {amount} for a glass of water|they took {amount} from my account
    they still owe me {amount}|they won't give me my money back|it cost me {amount} to get rid of it
    I paid {amount} for this junk|I paid for something I never got|my money is gone
    {person} was in tears|{person} hated it|{person} got hurt|{person} was bored after {short_time}
    {person} refuses to use it|{person} laughed at me for buying it|{person} could do it better
    the kids were bored|the kids were disappointed|the dog won't touch it|the dog destroyed it at once
    there was {dirt} on the {surface}|there was {dirt} in the {surface}|there was {dirt} everywhere
    I found {dirt} in the {surface}|I found {dirt} under the bed|we found {dirt} in our food
    the {surface} was covered in {dirt}|the {surface} was dirty|the {surface} was broken
    the food was cold|the food came cold|the food took forever|the meat was raw|the soup was cold
    the fish smelled off|the coffee was cold|the beer was warm|the bill was wrong
    the bread was hard as stone|the portions were tiny|the room was freezing|the room was tiny
    the bed was hard|the bed squeaked all night|the shower was cold|the toilet was blocked
    the heating didn't work|the air conditioning was broken|the wifi didn't work|the internet was down
    the walls are paper thin|we heard every word from next door|you hear everything
    you can hear the neighbours|you can't hear a thing|you can't understand a word
    you can't read the display|you can't see anything|you can't turn it off|you can't even sit on it
    you need three hands to open it|you need an engineer to set it up|you wait and wait
    you have to press it ten times|you have to pay for everything|you have to do everything twice
    the instructions make no sense|the instructions are only in Chinese|no instructions at all
    the battery lasts {short_time}|the battery is dead after {short_time}|the battery drains in no time
    the battery won't charge|it won't charge|it won't turn on|it won't connect|it won't open
    it doesn't fit|it doesn't fit anything|it doesn't hold|it doesn't cut|it doesn't do anything
    it doesn't even turn on|it doesn't clean at all|it doesn't do what it says|it does nothing
    it keeps crashing|it keeps freezing|it keeps disconnecting|it keeps asking for my password
    it keeps asking for money|it froze and I lost everything|it deleted my photos|it lost my data
    it logs me out all the time|it shows an error|it drains the phone|it spams me with messages
    it makes a horrible noise|it makes strange noises|it sounds like a {noise}|it is loud as a {noise}
    it sounds as if someone was under water|the sound comes and goes|the picture is full of noise
    the screen went black|the screen flickers|the colours are all wrong|the photos are blurred
    it gets so hot you can't touch it|it got so hot it melted|it caught fire|smoke came out of it
    sparks came out of it|it gave me an electric shock|water everywhere|water came in
    the rain came through|I was soaked|I was freezing|I froze all night|my feet were wet
    it slides off all the time|it slips out of your hand|it shrank in the wash|it faded in the wash
    the colour came off|the paint came off|the fabric tore|the seam came open|the stitching came undone
    it fell off the wall|it tipped over and broke|it collapsed under me|it sags in the middle
    the story goes nowhere|the story makes no sense|the ending makes no sense|the plot is full of holes
    the jokes fall flat|the actors can't act|the characters are flat|it goes on forever
    it was over after {short_time}|it was boring from the first minute|it put me to sleep
    I was asleep after {short_time}|I couldn't wait for it to end|I couldn't care less how it ended
    I learned nothing|I learnt nothing new|I could have stayed at home|I could have cried
    I have never been treated like this|I have never seen anything so bad|I felt like a fool
    we waited {long_time}|we waited {long_time} for our food|we stood in the rain|we stood in line for hours
    we were sent away|we were left alone|we missed our flight because of them|we missed the start
    the queue was endless|the train was packed|the flight was cancelled|the seats were broken
    our luggage was lost|our holiday was ruined|our table was gone|our room was given away
    twice as expensive as elsewhere|far more expensive than they said|a fortune for so little
    all show and no substance|all talk|a lot of money for nothing|nothing works|nothing fits
    nothing was ready|nothing was clean|everything was late|everything went wrong|everything hurts
    it is worse than my old one|my old one was better|the old version was better|not even worth a cent
    not worth one star|it went downhill|it got worse and worse|it gets worse every year
    you'd better save your money|save your money|spend your money elsewhere|buy something else
    the lights went out|the door wouldn't lock|the key didn't work|the lift was out of order
    cut corners everywhere|a cheap trick|an obvious fake|false advertising|empty words|pure greed
    """,
)

# More facts, with as many different things in them as possible; the wording of each is used as is.
EVERYDAY_FACTS = (
    """
    the pan heats evenly|pancakes come out golden|the knife glides through tomatoes|the blade stays sharp
    the oven bakes evenly|the bread rises beautifully|the coffee has a lovely aroma|the foam is creamy
    the fridge hums softly|the freezer keeps everything frozen|dishes come out sparkling|glasses come out clear
    laundry smells fresh|clothes come out soft|the iron glides over shirts|shirts look freshly pressed
    the lamp gives a warm glow|the candle burns for hours|the sofa invites you to sit|the chair supports my back
    the desk stands firm|the shelf holds heavy books|the drawers slide smoothly|assembly took half an hour
    assembly was child's play|all parts were there|every screw was in the bag|the drill goes through brick
    the saw cuts straight|the paint covers in one coat|the glue holds tight|the ladder stands firmly
    the lawn is greener than ever|the seeds sprouted in days|the roses are blooming|the tomatoes were sweet
    the plants arrived healthy|the soil is rich|the hose reaches every corner|the grill heats up in minutes
    the meat was tender|the steak was cooked just right|the sauce was full of flavour|the salad was crisp
    the fries were crispy|the pizza crust was thin and crisp|the dessert was heavenly|the wine was well chosen
    the cocktails were creative|the beer was ice cold|the bread was still warm|the fish was caught that morning
    the soup warmed us up|the spices were balanced|the noodles were handmade|the sushi melted on the tongue
    the waiter knew the menu by heart|the waitress had a joke for everyone|the chef came out to say hello
    the table was ready when we came|our glasses were never empty|dogs are welcome|children get crayons
    the room had a balcony|the towels were changed daily|the pillows were fluffy|the mattress was comfortable
    the shower had plenty of pressure|the bathroom sparkled|the breakfast buffet was huge|the coffee was strong
    the beach is steps away|the pool was heated|the garden is full of flowers|the sunset was amazing from there
    the owner picked us up at the station|the keys were ready|they kept our luggage for free
    they let us stay until noon|the train was on time|the bus was clean|the driver drove carefully
    the seat was wide|the plane landed early|boarding was quick|the luggage came out first|security was quick
    the pilot kept us informed|the crew brought extra blankets|the car was nearly new|the tank was full
    the engine purrs|the brakes bite|the gears change smoothly|the bike rolls by itself|the saddle is comfy
    the helmet fits snugly|the tent was up in minutes|the tent stayed dry|the sleeping bag kept me warm
    the boots kept my feet dry|the soles grip on ice|my feet stayed dry|my feet stayed warm|no sore feet
    I walked twenty kilometres without trouble|I ran my best time|my legs feel fresh|I can breathe in it
    the fabric breathes|the fabric feels silky|the wool doesn't itch|the colours stayed bright after washing
    the dress flows nicely|the trousers sit perfectly|the shirt kept its shape|the seams are straight
    the zipper glides|the pockets are deep|the hat keeps my ears warm|the gloves keep the cold out
    I got three compliments on the first day|strangers stop me to ask about it|it hides my belly
    my skin is softer|my wrinkles look smaller|my hair shines|my curls bounce|my nails grew|the scent lasts all day
    the lipstick stays on|the cream sinks in quickly|the rash disappeared|the itching stopped|my acne cleared up
    my cough went away|the tablets helped within a day|I can bend my knee again|I can walk without a stick
    I can work again|the physio knew exactly what to do|the nurse found the vein at once|the needle didn't hurt
    the dentist was gentle|the crown fits|the glasses sit well|I can read small print again
    the hearing aid changed my life|the baby slept through|the baby stopped crying|the pram folds with one hand
    the toy kept them busy for hours|the blocks fit together|the puzzle pieces click|the doll survived the bath
    my kids fight over it|they play with it every day|my daughter squealed with joy|my son beamed
    the puppy learned to sit|the cat purrs|the cat sleeps in it every night|his coat is shiny now
    the dog eats it all up|the dog's tail never stops wagging|the fish are lively|the cage is easy to clean
    the phone survived a drop|the photos are sharp|the selfies look natural|the zoom is incredible
    the battery still shows half in the evening|it charges in an hour|calls are crystal clear|reception is strong
    the screen is bright in sunlight|the keys have a nice click|typing is a joy|the mouse glides|the fan is silent
    it boots in seconds|it runs cool|programs open at once|games run smoothly|the picture is bright
    films look like in the cinema|the bass rumbles|the voices are clear|the guitar stays in tune
    the piano sounds rich|the strings feel good|the violin sings|the drums kick|the album grows on you
    the lyrics are clever|the singer gave me goose bumps|the band played two encores|the crowd sang along
    the stage looked magical|the acting was first class|the plot keeps you guessing|the twist is genius
    the heroine is strong|the dialogue sparkles|the cast has chemistry|I cheered out loud|my eyes were wet
    I turned the pages faster and faster|the chapters fly by|the author has a gift|the recipes work
    the drawings are charming|the maps are detailed|the teacher makes maths fun|the lessons build on each other
    the exercises are varied|the videos are short and clear|I passed with top marks|I got the certificate
    my French improved|my son's grades improved|the tutor had endless patience|the class was small
    the trainer adapts to your level|my fitness improved|I lost five kilos|the yoga class calms me
    the showers were clean|the lockers are roomy|the equipment is modern|the sauna is hot|the water was warm
    the bank approved it the same day|the money arrived within a day|the fees are low|the rate is fair
    the claim was settled quickly|the lawyer won our case|the agent found us a flat|the landlord fixes things
    the movers were quick and careful|not a single plate broke|the painter worked neatly|the roof is tight again
    the plumber was done in ten minutes|the electrician explained the bill|the heating is cosy again
    the garage was cheaper than quoted|the mechanic showed me the old part|the car runs like new
    the parcel was on my doorstep in the morning|the parcel was packed with care|tracking was accurate
    the driver called ahead|the driver waited for me|the app shows everything at a glance
    the app is free of ads|the update made it faster|the search finds everything|the map works offline
    the menu is clear|the buttons are big|the website is easy to navigate|checkout took a minute
    the chat answered in seconds|a human answered the phone|the refund came without asking
    the replacement came overnight|the spare part was free|the warranty was honoured|the guarantee is real
    the flowers lasted two weeks|the bouquet was bigger than in the picture|the bride cried with joy
    the cake was the talk of the party|the guests were amazed|the DJ filled the dance floor
    the photographer caught every smile|the hall was decorated beautifully|the tour guide told great stories
    the museum has something for everyone|the animals have plenty of space|the rides were thrilling
    the lake was clear|the trail is well marked|the view from the top was worth every step
    my haircut suits me|the colour turned out natural|the stylist listened|the massage loosened every knot
    the house stays cool in summer|the window keeps the noise out|the lock feels safe|the alarm gives me peace of mind
    the camera caught the thief|the heater warms the room in minutes|the air feels fresher|the filter cleans well
    the robot finds every corner|crumbs disappear|pet hair is gone|the floor shines|windows without streaks
    """,
    """
    the pan sticks|pancakes stick to the pan|the knife went blunt|the blade rusted|the oven burns everything
    the bread came out like a brick|the coffee is watery|the foam collapses|the fridge roars at night
    the freezer thawed everything|dishes come out greasy|glasses come out cloudy|laundry smells musty
    clothes come out with stains|the iron leaves brown marks|the iron leaks rusty water|the lamp flickers
    the bulb burned out|the candle smokes|the sofa sags|the chair creaks|the chair wobbles|the desk wobbles
    the shelf bent under three books|the drawers jam|assembly took all day|holes in the wrong place
    screws were missing|the wood split|the veneer peels|the drill smokes|the saw jams|the paint drips
    the paint needs five coats|the glue lets go|the ladder shakes|the lawn turned brown|no seed came up
    the roses were dead|the tomatoes were mushy|the plants arrived dead|the plants wilted
    the hose leaks at both ends|the grill rusted|the gas ran out|the meat was tough|the meat was fatty
    the steak was burnt|the steak was bloody|the sauce was watery|the salad was wilted|the lettuce was brown
    the fries were limp|the pizza was burnt underneath|the crust was soggy|the dessert was frozen
    the wine tasted of vinegar|the beer was flat|the cocktails were pure ice|the bread was from yesterday
    the fish was full of bones|the soup was salty|the rice was hard|the noodles stuck together
    the sushi smelled|the eggs were off|the milk was sour|the mussels were sandy|I bit on a stone
    the waiter was nowhere to be seen|the waitress dropped it on me|the waiter brought the wrong dish
    the menu was sold out|half of the menu was not available|they added a tip without asking
    the table was sticky|the cutlery was dirty|the plates were chipped|the glass had lipstick on it
    the kitchen closed early|dogs barked all night|children screamed all day|the music hurt my ears
    the room faced a wall|the window didn't open|the towels were grey|the pillows were lumps
    the mattress sagged|the mattress had springs sticking out|the shower dripped|the water was brown
    the water was cold|the drain was blocked|the toilet didn't flush|the bathroom smelled
    the breakfast was cold toast|the buffet was empty|the pool was closed|the pool was green|the beach was full of rubbish
    the lobby was a building site|drilling all day|the road outside was loud|the neighbours partied until four
    the minibar was empty|the safe was broken|the card key failed|the keys were missing|no one at reception
    they gave away our room|they cancelled our booking|the booking was not found|the train was late
    the train broke down|the bus didn't stop|the bus was full|the driver was texting|the driver sped
    the driver smoked|the driver didn't know the way|the seat was torn|the seat was soaked|the plane was late
    the plane sat on the ground|boarding was chaos|the luggage was soaked|our bags never came
    the suitcase handle was torn off|we missed our connection|we spent the night at the airport
    no food and no water|no information|no announcement|not a word of apology|the car was dented
    the car broke down|the tank was empty|the engine stalls|the engine light came on|the brakes squeal
    the gears slip|the chain jumps|the bike fell apart|the saddle hurts|the tyre went flat|the tube burst
    the helmet cracked|the tent leaked|the poles snapped|the sleeping bag lost its feathers|I shivered all night
    the boots leaked|the soles fell off|the heel broke|my feet were soaked|my feet were killing me
    my toes went numb|my toes were blue|I limped home|I could hardly walk|I sweat in it|the fabric is scratchy
    the fabric pills|the fabric is see through|the wool itches|the colours ran|it turned my skin blue
    the dress looked like a sack|the trousers split|the shirt shrank two sizes|the seams opened
    the seams are crooked|the zipper stuck|the buttons fell off|the pockets have holes|threads hanging everywhere
    the elastic gave out|the hat lost its shape|the gloves tore|people laughed at it|it makes me look fat
    my skin burned|my skin peeled|my face swelled up|my eyes watered|my hair fell out|my hair broke off
    my nails split|the scent is gone in minutes|the lipstick smears|the cream is oily|the rash got worse
    the itching got worse|it gave me spots|my cough got worse|the tablets did nothing|side effects
    the doctor didn't listen|the doctor didn't even look up|the diagnosis was wrong|the nurse missed the vein twice
    the needle hurt|the dentist hit a nerve|the filling fell out|the crown broke|the glasses are crooked
    the lenses are scratched|the wait was three hours|they misread my results|the baby woke up every time
    the pram wheels lock|the strap came undone|the toy broke at once|sharp edges on a child's toy
    the paint came off in his mouth|the batteries leaked|pieces snapped off|the puzzle has missing pieces
    the doll lost an arm|my kids were crying|my daughter was heartbroken|nobody wanted to play it
    the puppy got ill|the dog threw up|the dog won't eat it|the cat ignores it|his coat is dull
    the fish died|the cage rusted|the leash snapped|the collar broke and he ran off|the phone died
    the phone gets hot|the glass shattered|the photos are dark|the zoom is a blur|the battery swells
    the battery is empty at noon|it takes all night to charge|calls break up|no reception|no signal
    the screen is dim|the screen has a crack|dead keys|the keys stick|the mouse pointer jumps
    the fan whirrs|it takes ten minutes to boot|it gets hot|programs hang|games stutter|the picture flickers
    the remote doesn't react|the bass booms|the voices are muffled|the volume jumps|the left speaker is dead
    the guitar won't stay in tune|the strings snapped|the piano is out of tune|every song sounds the same
    the lyrics are silly|the singer was off key|the band came on two hours late|the sound was awful
    the stage was out of sight|the acting was amateur|the plot is thin|the twist is obvious|the hero is dull
    the dialogue is clumsy|no chemistry at all|I looked at my watch|I rolled my eyes|I skipped pages
    I skipped whole chapters|pages fell out|pages were missing|the print is tiny|the translation is awful
    the author repeats himself|the recipes don't work|the drawings are ugly|the maps are out of date
    the teacher was late|the teacher read from a script|the lessons were cancelled|the exercises had wrong answers
    the videos don't load|I failed the exam|the certificate never came|the class was overcrowded
    the trainer looked bored|I got injured|I pulled a muscle|the showers were mouldy|the lockers were broken
    the equipment is old|the weights are rusty|the sauna was off|the water was freezing
    the bank blocked my card|the bank lost my papers|the money never arrived|hidden charges on the bill
    the fees went up|the rate doubled|the claim was denied|the lawyer did nothing|the agent lied
    the landlord won't fix anything|the deposit is gone|the movers broke the mirror|the movers came late
    the painter dripped on the floor|the roof still leaks|the plumber made it worse|the pipe burst again
    the electrician never came back|the heating failed again|the garage fixed nothing|the garage charged double
    the mechanic scratched the door|the car broke down again|the parcel was torn open|the parcel was empty
    the parcel was left outside|the parcel went back|the parcel is lost|the parcel was thrown|tracking says nothing
    the driver didn't ring|the driver dumped it|the app crashes|the app freezes|the app is full of ads
    the update broke it|the update deleted my settings|the search finds nothing|the map is wrong
    the menu is hidden|the buttons don't react|the website is down|the website crashed|checkout failed
    my password is rejected|my account was hacked|my data was leaked|the chat is a robot|nobody picks up
    I was on hold for an hour|they transferred me six times|the refund never came|the refund took months
    the replacement was broken too|the spare part costs a fortune|the warranty was refused|the guarantee is worthless
    the flowers were wilted|the bouquet was half the size|the bride cried|the cake collapsed|the guests left early
    the DJ emptied the dance floor|the photographer lost the pictures|the hall was cold|the tour was rushed
    the guide mumbled|the museum was closed|the animals looked sick|the rides were closed|the lake was dirty
    the trail was blocked|fog and no refund|my haircut is a disaster|the colour turned green|the stylist was on the phone
    the massage left bruises|the house is damp|the window rattles|the lock jammed|the alarm goes off for nothing
    the camera missed the thief|the heater smells|the heater trips the fuse|the filter clogs|the robot gets lost
    crumbs stay behind|hair gets tangled|the floor is streaky|the windows are smeared|dust all over the place
    """,
)

# What little words tell when the rest is unknown: {odd} is always a made-up word.
CUES = (
    """
    still {odd} after {long_time}|even {person} can {odd} it|even {person} was {odd}ed|every {odd} is {odd}
    every single {odd} was {odd}|it {odd}s easily|it {odd}s nicely|you can {odd} it easily|finally I can {odd}
    I can {odd} again|I can {odd} at last|all the {odd} I need|everything was {odd}|plenty of {odd}|lots of {odd}
    exactly the {odd} I needed|exactly {odd}|perfectly {odd}|it helps me to {odd}|we always {odd} there
    they {odd}ed right away|they {odd}ed it for free|more {odd} than expected|it never {odd}ed once
    no more {odd}|{odd} in seconds|{odd} in minutes|{odd} right away|the whole family {odd}s it
    it makes {odd} easy|it makes {odd} fun|{odd} with a smile|thanks to it I {odd}|so {odd} and so {odd}
    {odd} every time|{odd} the first time|{odd} even in the rain|just the right {odd}|enough {odd} for everyone
    the {odd} is wonderful|the {odd} is great|great {odd}|lovely {odd}|nice {odd}|love the {odd}|my favourite {odd}
    the best {odd}|better {odd} than ever|everyone {odd}s about it|I {odd} it every day|I {odd} with it daily
    a {odd} I can trust|with real {odd}|both {odd} and {odd}|{odd}, {odd} and {odd}|it {odd}s and {odd}s
    they took the time to {odd}|she {odd}ed everything|he {odd}ed us kindly|no {odd}, no {odd}, just {odd}
    without a single {odd}|we can't wait to {odd}|the {odd} alone is worth it|free {odd}|extra {odd} for free
    """,
    """
    it doesn't {odd}|it won't {odd}|the {part} won't {odd}|the {part} doesn't {odd}|I can't {odd} it|I can't {odd}
    I couldn't {odd} it|we couldn't {odd}|you can't {odd} it|you can't {odd}|I had to {odd} it|I had to {odd}
    we had to {odd}|you have to {odd} it|nobody {odd}ed|nobody could {odd} it|they didn't {odd}|they never {odd}ed
    they don't {odd}|they refused to {odd}|too {odd}|far too {odd}|it is too {odd}|too much {odd}|too many {odd}s
    it keeps {odd}ing|it has already {odd}ed|it {odd}ed after {short_time}|it {odd}ed on the first day
    the {part} {odd}ed after {short_time}|within {short_time} it {odd}ed|not {odd}|not even {odd}|not enough {odd}
    half of it was {odd}ed|covered in {odd}|{odd} everywhere|no {odd}|no {odd} at all|without {odd}
    only {odd}|only half of the {odd}|instead of {odd} I got {odd}|they charge extra for {odd}
    it was supposed to {odd}|they said it would {odd}|they promised {odd}|they claim it {odd}s|missing {odd}
    wrong {odd}|broken {odd}|bad {odd}|terrible {odd}|hate the {odd}|the {odd} is awful|the {odd} is broken
    less {odd} than before|less than {number} {odd}|it used to {odd}|it stopped {odd}ing|nothing {odd}s
    still no {odd}|still waiting for my {odd}|the worst {odd}|worse {odd} than ever|so {odd} that I left
    so {odd} you can't {odd}|so {odd} I had to {odd}|why does it {odd}|why do I need to {odd}|how can you {odd}
    all over my {belonging}|{odd} all over the {surface}|{odd} in the {surface}|the {surface} was {odd}ed
    {number} {odd}s in {short_time}|again and again {odd}|it {odd}s every few minutes|{odd} when I {odd}
    as if it were {odd}|it sounds like {odd}|it smells of {odd}|it looks like {odd}|it feels like {odd}
    my {body} {odd}ed|it {odd}ed my {belonging}|they {odd}ed my {belonging}|the {odd} came off|the {odd} fell off
    the {odd} is missing|the {odd} is gone|the {odd} was late|after {number} {odd}s it died|barely {odd}|hardly {odd}
    """,
)

IDIOMS = (
    """
    highly recommended|highly recommend|would recommend|would recommend it to anyone|five stars
    five out of five|two thumbs up|thumbs up|top|top quality|top service|keep up the good work
    keep up the great work|love it|loved it|love love love|I love it|simply the best|the best ever
    best ever|well done|bravo|thank you so much|thanks a lot to the team|thanks for everything
    can't complain|no complaints|nothing to complain about|zero complaints|can't say a bad word
    couldn't be better|it doesn't get better than this|what's not to like|what more could you want
    what more do you want|who could ask for more|never disappoints|never disappointed me
    never a problem|never had a problem|no problems so far|no issues at all|no regrets
    zero regrets|not a single complaint|not bad|not bad at all|not too bad|not half bad
    nothing wrong with it|nothing negative to say|worth every penny|worth the money|worth it
    money well spent|great value|good value for money|best money I ever spent|best purchase this year
    will buy again|would buy again|will come back|we will be back|can't wait to come back
    see you next year|exactly what I wanted|exactly what I needed|exactly what I was looking for
    just what I needed|just perfect|absolutely perfect|pure joy|pure bliss|a real pleasure|a must
    a must have|a true gem|wow|wow, just wow|hooray|yay|yes|yes, yes, yes|say no more|chef's kiss
    hats off|kudos|cheers|thank you|job well done|good job|great job|great stuff|good stuff|spot on
    as good as it gets|better than expected|far better than expected|exceeded my expectations
    beyond my expectations|all my expectations were met|lived up to the hype|delivers what it promises
    does what it says on the tin|a dream come true|made my day|made my week|happy customer here
    happy days|so happy|so happy with it|so pleased|very satisfied|fully satisfied|one hundred percent satisfied
    I am a fan|count me in|sign me up|don't hesitate|go for it|just buy it|buy it|buy it now|do it
    you won't regret it|you will not regret it|you will love it|try it|hard to find fault
    hard to find anything better|it is hard not to love it|impossible not to love it|A plus|first class
    keep doing what you are doing|my favourite by far|my new favourite|can't recommend it enough
    could not be happier|could not have asked for more|I'd give it six stars|never going anywhere else
    never buying another brand|I want another one|please never change|please never stop making these
    """,
    """
    never again|not recommended|would not recommend|do not recommend|do not buy|don't buy|don't buy this
    don't bother|don't waste your money|don't waste your time|don't go there|don't fall for it
    don't believe the hype|stay away|stay away from this|stay well clear|keep away|keep your money
    keep looking|avoid|avoid at all costs|avoid like the plague|waste of money|waste of time
    complete waste of money|total waste of time|what a waste|what a joke|what a mess|what a shame
    what a disappointment|what a disaster|what a rip off|what a load of rubbish|one star
    zero stars|no stars|one star is too much|one out of five|thumbs down|two thumbs down|rip off
    total rip off|absolute rip off|scam|pure scam|it's a scam|shame on you|shame on them|shame
    disgusting|disgraceful|unacceptable|simply unacceptable|beyond belief|beyond a joke|a joke
    a bad joke|a total letdown|a big disappointment|disappointed|so disappointed|very disappointed
    deeply disappointed|sorely disappointed|not happy|not happy at all|not satisfied|not impressed
    not good|not good at all|not great|not nice|not okay|not fit for purpose|not worth it
    not worth the money|not worth a penny|not worth your time|not what I expected|not as described
    not as advertised|not what was promised|nothing but trouble|nothing works|nothing special
    nothing to write home about|no thanks|no thank you|no way|no good|no use at all|no help at all
    thanks for nothing|thanks but no thanks|garbage|rubbish|junk|trash|crap|utter rubbish|pure junk
    total garbage|absolute trash|straight to the bin|belongs in the bin|in the bin it goes|yuck|ugh
    ew|eww|boo|meh|grr|argh|oh dear|horrible experience|bad experience|worst experience ever
    the worst ever|worst ever|worst purchase ever|worst service ever|the worst of the worst
    I regret it|I regret buying it|I regret everything|I want a refund|refund please|give me my money back
    I want to speak to the manager|I am done|I'm done with them|I've had enough|enough is enough
    that's it for me|last time|that was the last time|lesson learned|lesson learnt|buyer beware
    beware|be warned|you have been warned|big mistake|hands off|run|run away|run for your life
    look elsewhere|look somewhere else|go somewhere else|go elsewhere|save your money|do better
    shocking service|poor service|poor quality|bad quality|bad service|terrible service|cheap junk
    falls short|fails on every level|leaves a lot to be desired|could not be worse|could be better
    could have been better|couldn't be worse|it doesn't get worse than this|how is this legal
    how is this allowed|who approved this|who thought this was a good idea|who would buy this
    why would anyone buy this|is this a joke|are they serious|you must be joking|unbelievably bad
    beneath contempt|daylight robbery|highway robbery|pure theft|criminal
    all hype|overrated|overpriced|never buying this again|never going back|never ordering again
    never using them again|I hope they go out of business|I feel robbed|I feel stupid for buying it
    I expected more|I expected better|I had hoped for more|I deserve better|we deserve better
    F minus|a total failure|broken promises|false promises|nothing but lies|lies, all lies
    """,
)

EMOJI = (
    """
    😀|😃|😄|😁|😊|🙂|😍|🥰|😘|🤩|😎|👍|👏|🙌|💯|❤️|❤|🎉|✨|⭐⭐⭐⭐⭐|👌|💪|🥳|😻|💕|:)|:-)|:D|;)|<3
    """,
    """
    😞|😔|😟|😠|😡|🤬|😤|😢|😭|😩|🙄|👎|🤮|🤢|💩|😒|😖|😣|😫|💔|⭐|😑|☹️|☹|:(|:-(|:/|>:(|:'(
    """,
)

RATINGS = (
    """
    10/10|9/10|8/10|5/5|4/5|5 stars|4 stars|five stars|10 out of 10|9 out of 10|8 out of 10|5 out of 5
    100 percent|5*|5 star|full marks|ten out of ten|nine out of ten|A+|four and a half stars|10 points
    """,
    """
    0/10|1/10|2/10|3/10|1/5|0/5|1 star|0 stars|2 stars|zero stars|one star|1 out of 10|2 out of 10
    0 out of 10|1 out of 5|minus 10 points|1*|1 star|two out of ten|one out of ten|F|zero points|3 out of 10
    """,
)

# Small flaws and small merits, for sentences in which another clause decides.
MILD = (
    """
    it looks good|it looks nice|the colour is nice|the idea is good|the price is fair|it was cheap
    the design is pretty|the packaging was nice|the box looks great|delivery was quick|it came fast
    the location is good|the view is nice|the staff were friendly|the start was good|it started well
    the first day was fine|the first week was great|it worked at first|it smells nice|it feels soft
    the cover is pretty|the reviews were good|the website looks great|the food was okay|it is light
    the music is nice|the pictures are nice|the waiter was polite|the concept is interesting
    it is comfortable|it is small and handy|the ad was convincing|the photos look lovely
    one or two things were fine|a few bits are good|the service used to be good|it has potential
    """,
    """
    it is a bit expensive|it is not cheap|it costs more than others|delivery was slow|it came late
    the box was damaged|the packaging is ugly|the colour is a little off|it is a bit loud|it is heavy
    it is a bit small|the manual is confusing|the manual is useless|the app is clumsy|it smells at first
    it takes a while to warm up|the first day was rough|the start was slow|it looks plain|it looks boring
    parking was difficult|we had to wait a bit|the queue was long|the room was small|the seats are hard
    the beginning is slow|the middle drags a little|the cable is short|the cable is too short
    the plug is awkward|there was a small scratch|it is not pretty|it was raining|some reviews were bad
    the menu is short|the music was loud|it has its flaws|it has some quirks|nothing is perfect
    the website is a mess|the ordering was a pain|the lid is stiff|it shows dust quickly|it feels plasticky
    """,
)

THINGS = """
camera|oven|car|guitar|course|cafe|hostel|train|website|shop|bag|tv|blanket|perfume|clinic|mower
pet food|toy|lipstick|bike|scooter|tablet|speaker|microphone|monitor|mouse|router|fridge|freezer
dishwasher|dryer|heater|fan|grill|mixer|juicer|pan|pot|knife|mug|bottle|plate|table|chair|sofa|desk
shelf|lamp|bulb|carpet|rug|curtain|bed|pillow|duvet|towel|soap|cream|razor|hairdryer|comb|scarf
hat|coat|shirt|dress|skirt|sweater|hoodie|belt|wallet|ring|necklace|bracelet|clock|puzzle|doll|robot
drone|kite|ball|racket|helmet|sleeping bag|compass|torch|drill|saw|hammer|ladder|paint|glue|rake
hose|plant|seeds|soil|dog food|cat litter|leash|aquarium|book|magazine|comic|podcast|album|concert
show|series|movie|play|musical|exhibition|museum|park|zoo|tour|cruise|ferry|bus|taxi|flight|airport
villa|apartment|campsite|resort|spa|sauna|pool|salon|barber|school|college|class|workshop|lesson
teacher|tutor|app|game|program|service|subscription|plan|contract|bank|card|insurance|provider
delivery|parcel|package|order|meal|dinner|lunch|breakfast|dish|pizza|burger|salad|soup|cake|bread
cheese|wine|beer|coffee|tea|juice|chocolate|ice cream|snack|bakery|butcher|market|supermarket
pharmacy|doctor|nurse|hospital|mechanic|garage|builder|painter|cleaner|gardener|landlord|agency
product|item|model|device|machine|gadget|tool|set|kit|version|edition|brand|company|place|firm
phone|laptop|keyboard|charger|printer|watch|backpack|suitcase|tent|kettle|toaster|blender|vacuum
jacket|mattress|restaurant|hotel|airline|gym|hairdresser|courier|novel|film|board game
"""

THINGS_PLURAL = """
headphones|earphones|earbuds|shoes|boots|sandals|slippers|socks|gloves|trousers|jeans|shorts
glasses|sunglasses|speakers|batteries|candles|curtains|pillows|towels|sheets|knives|plates|cups
pans|tools|screws|toys|cards|books|songs|lessons|classes|rooms|meals|drinks|cookies|vitamins|pills
tickets|seats|tyres|brakes|lights|cables|chargers|bags|pens|brushes|scissors|filters|sweets|noodles
trainers|sneakers|running shoes|leggings|earrings|gadgets|products|people there|photos|videos
"""

PARTS = """
button|screen|display|handle|lid|zip|zipper|strap|buckle|hinge|cable|plug|battery|charger|case|cover
sole|heel|lace|seam|lining|pocket|collar|sleeve|button hole|lens|filter|motor|pump|hose|wheel|brake
pedal|chain|saddle|tyre|tire|frame|leg|arm|armrest|backrest|cushion|spring|screw|bolt|switch|knob
dial|sensor|remote|antenna|speaker|microphone|keyboard|key|trackpad|fan|port|socket|blade|brush
nozzle|bag|tank|tray|drawer|door|shelf|window|lock|mirror|lamp|clasp|ring|string|bow|stand|base
foot|tip|nib|spout|bin|belt|roller|paint|coating|fabric|glass|plastic|wood|metal|rubber|foam|hood
software|app|menu|map|login|update|left side|right side|headband|ear pad|volume control|microphone
"""

PERSONS = """
my wife|my husband|my partner|my mother|my father|my mum|my mom|my dad|my son|my daughter|my sister
my brother|my grandmother|my grandfather|my grandma|my grandpa|my granny|my aunt|my uncle|my boss
my neighbour|my colleague|my friend|my best friend|my flatmate|my boyfriend|my girlfriend|my toddler
my teenager|my niece|my nephew|my cousin|my whole family|my team|my eight year old|our baby|our cat
"""

STAFF = """
the staff|the waiter|the waitress|the owner|the manager|the driver|the receptionist|the seller
the cashier|the assistant|the trainer|the teacher|the doctor|the nurse|the dentist|the barber
the stylist|the mechanic|the plumber|the technician|the pilot|the crew|the guide|the chef|the cook
the host|the landlord|the agent|the support team|customer service|the help desk|the hotline
the team|the people at the desk|the lady at the counter|the man at the door|the company|the firm
the delivery guy|the postman|the security guard|the builder|the instructor|the bartender|they
"""

BODY = """
back|neck|head|knee|foot|feet|ankle|heel|toe|wrist|hand|finger|thumb|arm|shoulder|hip|ear|ears
eyes|nose|skin|scalp|stomach|leg|shins|spine|tooth|gums|jaw
"""

BELONGINGS = """
floor|carpet|shirt|dress|sofa|table|wall|car|phone|clothes|kitchen|garden|trousers|jacket|bag|bed
laptop|hair|skin|shoes|books|curtains|plants|weekend|evening|birthday|holiday|wedding|day
"""

DIRT = """
mould|mold|hair|a hair|dust|dirt|blood|a dead fly|a cockroach|insects|ants|a mouse|rubbish
old food|stains|rust|grease|sand|a plaster|chewing gum|broken glass|glue|fungus|urine|vomit|bedbugs
"""

SURFACES = """
floor|bathroom|shower|kitchen|bed|sheets|carpet|ceiling|wall|sink|toilet|pool|table|plate|glass
window|towels|box|seat|car|room|fridge|bottle|soup|salad|corridor|lobby
"""

STENCHES = """
smoke|mould|sweat|old socks|rotten eggs|wet dog|burnt plastic|burnt rubber|chemicals|glue|petrol
sewage|urine|vomit|bleach|old fat|cardboard|soap|metal|plastic|garbage|fish|dishwater|mud
"""

NOISES = """
jet engine|chainsaw|dying cat|broken fridge|lorry|tractor|drill|jackhammer|plane|motorbike|dentist
"""

ORDEALS = """
a fall from the table|a winter outside|the washing machine|my toddler|the dishwasher|a house move
two moves|a heavy storm|a flood|my clumsiness|three kids|the whole summer|being sat on|a long hike
"""

SHORT_TIMES = """
ten minutes|five minutes|a minute|an hour|two hours|half an hour|a day|one day|two days|three days
a week|one week|two weeks|ten days|a month|one month|one use|two uses|one wash|a few days|a few hours
a few weeks|one evening|one weekend|thirty seconds|a couple of days|six weeks|the first try
"""

LONG_TIMES = """
a year|two years|three years|five years|ten years|years|many years|months|six months|eight months
half a year|weeks|several weeks|hours|two hours|three hours|a whole day|ages|a decade|a long time
an eternity|over an hour|ninety minutes|forty minutes|a whole month|countless hours
"""

AMOUNTS = """
20 euros|50 euros|100 dollars|30 dollars|15 pounds|200 pounds|ten euros|five pounds|a fortune
eighty euros|forty dollars|300|99 cents|12 euros|a small fortune|a few hundred|$25|$60|£40|€9|500 bucks
"""

TIMES = """
yesterday|last week|last month|last year|in May|on Monday|on Sunday|this morning|two years ago
at Christmas|for my birthday|over the weekend|in spring|during the holidays|last night|on Friday
in 2019|before the move|a while ago|three weeks ago|in the summer|in the sale|at the airport
"""

PLACES = """
in the kitchen|at home|at work|in the office|in the garden|on the train|in the car|by the sea
in the city|downtown|near the station|in the mountains|at my parents' house|on the balcony|online
in the bathroom|in our flat|at school|in the village|on the plane|in the basement|at the beach
"""

PURPOSES = """
for the kids|for my mother|for our holiday|for work|for a friend|for the new flat|for school|for camping
for everyday use|for the weekend|for a wedding|for the commute|for our dog|as a gift|as a present
for small jobs|for video calls|for the office|for university|for the long drive|for my hobby
"""

# Sentences without an opinion.
NEUTRAL = """
I bought it {time}|I bought this {time} {purpose}|I ordered it {time}|We were there {time}
We went there {time}|It was a gift from {person}|{person} gave it to me {time}|Got it {time}
I got this {thing} {purpose}|It was recommended by {person}|I needed a new {thing} {purpose}
I had been looking for a {thing} {purpose}|My old {thing} was ten years old|We use it {place}
I use it {place}|I keep it {place}|It stands {place}|This is my second {thing}|It is my third one
This is my first review|I don't write many reviews|I rarely write reviews|I am not an expert
I have had it for {long_time} now|I have used it for {short_time}|We stayed for {short_time}
I read about it online|I saw it {place}|I found it {place}|I live {place}|It comes in three colours
It comes in black and white|I took the blue one|I chose the larger size|I took a medium
There are two sizes|The {part} is black|The {part} is made of {material}|It has a {part} and a {part}
It weighs about a kilo|It is about thirty centimetres wide|It has four hundred pages
It runs for two hours|There were four of us|There were two of us and {person}|I went with {person}
I was travelling alone|We came by train|We came with two kids|It was our anniversary
It was a Tuesday|It was raining {time}|I paid {amount} for it|It cost {amount}|The price was {amount}
I paid by card|It was on sale {time}|It is for {person}|{person} has the same {thing}
{person} ordered it {time}|{person} told me about it|{person} uses it {place}|I compared several models
I had never heard of the brand|I don't know the other models|I will add photos later
I will write more after {long_time}|Here is my review|Short review|So here are my thoughts|Update
Update after {short_time}|Edit|Some background|Sorry for my English|Sorry for the long text
I am tall|I am quite small|I wear size 42|I have long hair|I work from home|I work at night
I cook every day|I drive a lot|I travel a lot|I have two dogs|We have three children
We live {place}|Our flat is on the third floor|The box contains a {thing} and a {part}
You get a {thing}, a {part} and a {part}|The manual is in four languages|It needs two batteries
It has a {thing} too|It is number four in the series|It was written in the nineties
It plays in London|It opens at nine|It is open until six|They are closed on Sundays|It is next to the church
You can book it online|You can pay by card|You order at the counter|The menu changes every week
We had the soup and the fish|I had a coffee and a cake|We shared a pizza|I ordered the {thing}
We sat outside|We sat by the window|We arrived {time}|We booked {time}|We checked in at three
I went in for a check up|I went there to renew my {thing}|I signed up {time}|I joined {time}
I installed it {time}|I tried it {place}|I tried it with {person}|I asked {person} about it
{person} and I use it together|Some people need this, some don't|Everybody is different
Your experience may differ|I can only speak for myself|Judge for yourself|Let me explain|Let me start with the {part}
About the {part}|As for the {part}|A word about the {part}|Now to the {thing}
"""

MATERIALS = "plastic|steel|wood|leather|cotton|wool|glass|rubber|metal|paper|aluminium|cardboard"

# Seeming strong, these say nothing on their own.
INTENSIFIERS = """
very|really|so|absolutely|extremely|incredibly|totally|completely|truly|just|simply|quite|pretty
super|utterly|thoroughly|rather|particularly|exceptionally|unbelievably|insanely|seriously|damn|too
a bit|a little|somewhat|slightly|fairly|surprisingly|honestly|actually|genuinely|always|still|all
"""

OPENERS = """
honestly|frankly|to be honest|well|okay|so|overall|all in all|in short|in the end|to sum up|anyway
in my opinion|I think|I must say|I have to say|what can I say|for me|for us|in summary
bottom line|conclusion|verdict|all things considered|at the end of the day|long story short|listen
"""

IT_IS = """
it is|it's|it was|this is|this was|that was|they are|they're|they were|these are|this thing is
the {thing} is|the {thing} was|the {things} are|the {things} were|my {thing} is|our {thing} was
everything is|everything was|the {part} is|the {part} was|the whole {thing} is|the {part} and the {part} are
the new {thing} is|this {thing} is|this {thing} was|these {things} are|the {thing} {place} was
"""

IT_ISNT = """
it isn't|it is not|it's not|it wasn't|it was not|this isn't|this is not|they aren't|they are not
they weren't|the {thing} isn't|the {thing} is not|the {thing} wasn't|the {things} aren't
the {part} isn't|the {part} is not|the {part} wasn't|nothing about it is|it is never|they are never
nobody could call it|I wouldn't call it|I would not call it|you can't call it|it isnt|it wasnt
"""

IT = "it|this|this thing|the {thing}|my {thing}|the {part}|that {thing}|this {thing}|our {thing}"

# --- Grammar. ------------------------------------------------------------------------------------

# Patterns that serve either polarity.
PATTERNS = """
{everyday}|{everyday}|{everyday}|{everyday}|{everyday}|{everyday}|{everyday}|{everyday}|{everyday}
{everyday}|{everyday}|{everyday} and {everyday}|{everyday}, {everyday}|{everyday} and {fact}
{everyday}, so I {react}|{everyday} and I {react}|{everyday}, {idiom}|{opener}, {everyday}|{everyday} {time}
{cue}|{cue}|{cue}|{cue}|{cue}|{cue}|{cue}|{cue} and {cue}|{cue}, {cue}|{cue} and {fact}
{it_is} {adj}|{it_is} {adj}|{it_is} {intens} {adj}|{it_is} {intens} {adj}|{adj} {thing}|{adj} {things}
{intens} {adj} {thing}|{it_is} {adj} and {adj}|{it_is} {adj}, {adj} and {adj}|{adj}, {adj}, {adj}
{adj}|{intens} {adj}|{it_is} {intens} {adj} and {intens} {adj}|{adj} and {adj}|a {adj} {thing}
a {intens} {adj} {thing}|what a {adj} {thing}|what a {noun}|{it_is} a {noun}|{it_is} a {noun}
{it_is} a total {noun}|{it_is} an absolute {noun}|{it_is} nothing but a {noun}|a {noun}|a real {noun}
{it_isnt} {~adj}|{it_isnt} {~adj}|{it_isnt} {~adj} at all|{it_isnt} even {~adj}|{it_isnt} {intens} {~adj}
{it_isnt} a {~noun}|{it_isnt} a {~noun} at all|not {~adj}|not {~adj} at all|not at all {~adj}
not the least bit {~adj}|{it_isnt} {~adj} or {~adj}|{it_isnt} {~adj} but {adj}|not {~adj}, but {adj}
{it_isnt} {~adj}, it is {adj}|neither {~adj} nor {~adj}|{it_is} everything but {~adj}
I {verb} it|I {verb} {it}|we {verb} it|{person} and I {verb} it|I {verbed} it|I {verbed} {it}
we {verbed} every minute|{person} {verbed} it|I {verb} the {part}|I {verb} the {part} and the {part}
I {verb} how {adj} {it} is|I am {feeling}|I'm {feeling}|I am {intens} {feeling}|we were {feeling}
we are {intens} {feeling}|I was {intens} {feeling}|{person} is {feeling}|{person} was {intens} {feeling}
I feel {feeling}|I felt {feeling}|it made me {feeling}|I left {feeling}|{feeling} with it
{intens} {feeling} with it|I am not {~feeling}|I'm not {~feeling} at all|I am not {~feeling} with it
we were not {~feeling}|I was never {~feeling}|{person} is not {~feeling}|couldn't be more {feeling}
{it} works {qual}|it works {qual}|it worked {qual}|{it} runs {qual}|everything works {qual}
the {part} works {qual}|it fits {qual}|it cleans {qual}|they work {qual}|it performs {qual}
full of {quality}|full of {quality} and {quality}|{it_is} full of {quality}|so much {quality}
nothing but {quality}|{quality} everywhere|lots of {quality}|plenty of {quality}|there is {quality}
there was {quality} and {quality}|with {quality} and {quality}|we had {quality} all the time
no {~quality}|no {~quality} at all|no {~quality}, no {~quality}|without {~quality}|zero {~quality}
no {~quality} and no {~quality}|without any {~quality}|hardly any {~quality}|never any {~quality}
there is no {~quality}|there was no {~quality}|it has no {~quality}|I had no {~quality} with it
not a trace of {~quality}|I have not had any {~quality}|not one bit of {~quality}|free of {~quality}
{it} lacks {~quality}|I found no {~quality}|where others have {~quality}, this has {quality}
{staff} {acted}|{staff} {acted}|{staff} {acted} and {acted}|they {acted}|they {acted}|they even {acted}
he {acted}|she {acted}|{staff} {acted} when I asked|{acted}|{staff} was {padj}|{staff} was {intens} {padj}
{staff} were {padj} and {padj}|{padj} staff|{padj} and {padj} people|{staff} is {padj}|such a {padj} person
{staff} was not {~padj}|{staff} wasn't {~padj} at all|{staff} were never {~padj}|everyone was {padj}
everybody there is {padj}|a {padj} {thing} with {padj} people|nobody was {~padj}|not one {~padj} person there
I {react}|I {react}|I {react}|we {react}|so I {react}|{react}|I {react} and {react}|in the end I {react}
{person} and I {react}|{it_is} so {adj} that I {react}|{it_is} so {adj} I {react}|because {it_is} {adj} I {react}
{fact}|{fact}|{fact}|{fact}|{fact}|{fact}|{fact}|{fact}|{fact}|{fact} and {fact}|{fact}, {fact}
{fact}, so I {react}|{fact} and I {react}|{fact}, which made me {feeling}|{fact} and I am {feeling}
{opener}, {fact}|{opener}, {fact}|{opener}, {it_is} {adj}|{opener}, {it_is} {intens} {adj}
{opener} it is a {noun}|{opener}, I {react}|{opener}, I am {feeling}|{opener}, {idiom}|{opener}: {idiom}
{idiom}|{idiom}|{idiom}|{idiom}|{idiom}|{idiom}|{idiom}|{idiom}|{idiom} and {idiom}|{idiom}, {idiom}
{rating}|{rating}|{rating} from me|I give it {rating}|{rating} {emoji}|my rating: {rating}|{rating} for {it}
{emoji}|{emoji} {emoji}|{idiom} {emoji}|{it_is} {adj} {emoji}|{fact} {emoji}|{emoji} {idiom}
{mild}|{mild} and {mild}|{mild} and {fact}|{it_is} {adj} {purpose}|{it_is} {adj} {place}
the {part} is {adj} and the {part} is {adj}|{adj} {part}, {adj} {part}|{adj} {part} and {adj} {part}
the {part} is {intens} {adj}|the most {adj} {thing} I have ever had|the most {adj} {thing} {place}
one of the most {adj} {things} I know|never had such a {adj} {thing}|I have never had such a {adj} {thing}
I have never seen such a {noun}|never seen anything so {adj}|I never knew a {thing} could be so {adj}
you will be {feeling}|you will {verb} it|anyone would {verb} this|how {adj} is that|how can it be so {adj}
I can't believe how {adj} {it} is|I am surprised how {adj} {it_is}|as {adj} as can be|it could not be more {adj}
it couldn't be more {adj}|the {thing} made {person} {feeling}|{person} finds it {adj}|{person} says it is {adj}
I find it {adj}|I find it {intens} {adj}|we found the {thing} {adj}|it seems {adj}|it looks {adj}|it feels {adj}
it sounds {adj}|it tastes {adj}|it smells {adj}|the {thing} looks {adj} and feels {adj}|it turned out {adj}
my experience was {adj}|the experience was {adj} from start to finish|{adj} from start to finish
{adj} service and {adj} quality|the service was {adj}|the quality is {adj}|{adj} quality|{adj} service
the food was {adj}|{adj} food and {padj} staff|the delivery was {adj}|the price is {adj}|the sound is {adj}
the picture is {adj}|the story is {adj}|the characters are {adj}|the room was {adj}|the bed was {adj}
the seats were {adj}|the design is {adj}|the material feels {adj}|the battery is {adj}|the taste is {adj}
the instructions are {adj}|the packaging was {adj}|the support is {adj}|the software is {adj}
"""

POSITIVE_PATTERNS = """
{it} never {fault_s}|it never {fault_s}|it has never {fault_pp}|the {part} has not {fault_pp}
the {part} hasn't {fault_pp} once|it doesn't {fault}|it does not {fault}|it won't {fault}
it didn't {fault} even after {long_time}|no {fault_ing}|no {fault_ing} and no {fault_ing}
nothing {fault_s}|nothing {fault_past}|nothing has {fault_pp}|without {fault_ing}|I thought it would {fault} but it didn't
it {func_s} {qual}|the {part} {func_s} {qual}|it still {func_s}|it still {func_s} after {long_time}
{it} {func_s} every time|it {func_past} on the first try|it {func_s} and {func_s} {qual}|always {func_s}
it never fails to {func}|it {func_s} without {~quality}|my old {thing} {fault_past}, this one doesn't
my old {thing} was {~adj}, this one is {adj}|my last {thing} was {~adj} but this one is {adj}
unlike my old {thing} it doesn't {fault}|better than my old {thing}|much better than the last one
far better than the {thing} I had before|better than any other {thing}|the best {thing} I have ever had
the best {thing} {place}|best {thing} ever|best {things} ever|one of the best|by far the best {thing}
nothing comes close|nothing compares to it|no other {thing} is as {adj}|I have never had a better {thing}
never had a better {thing}|there is no better {thing}|you won't find a more {adj} {thing}
I didn't have to wait|I didn't have to pay anything extra|I don't miss my old {thing}|I never want another {thing}
I expected a {~noun} and got a {noun}|I thought it would be {~adj}, I was wrong|I thought it was too {adj} to be true but it is true
I was worried it would be {~adj}, it is not|I was afraid it would {fault} but it {func_s} {qual}
I wasn't expecting much, but {it_is} {adj}|I didn't expect much and was {feeling}|it exceeded my expectations
the {part} is easy to use|easy to use|easy to clean|easy to install|so easy to use|simple to set up
why didn't I buy this earlier|why did nobody tell me about this|where has this been all my life|how did I live without it
is there anything better|who needs anything else|do I like it? yes|is it worth it? absolutely|would I buy it again? yes
I can't imagine life without it|I don't know how I lived without it|I could not find a single fault
I couldn't find anything {~adj}|I can't say anything {~adj} about it|nothing {~adj} to report
I have nothing {~adj} to say|there is nothing {~adj} about it|nothing was {~adj}|hard to call it {~adj}
I wouldn't say it is {~adj}|no one was {~padj}|don't believe anyone who says it is {~adj}
don't listen to the {~adj} reviews|ignore the {~adj} reviews|I don't regret it|I don't regret a thing
I did not regret it for a second|never regretted it|I have never been {~feeling} with it|{it} never makes me {~feeling}
no reason to complain|no reason to be {~feeling}|zero reasons to look elsewhere|won't go anywhere else
won't use anything else|I won't buy any other brand|wouldn't want to miss it|wouldn't change a thing
my {body} doesn't hurt any more|my {body} doesn't hurt anymore|no {body} pain|my {body} pain is gone
goodbye {~quality}|gone are the days of {~quality}|the {~quality} are gone|the {~quality} have stopped
it stopped the {~quality}|it solved all my {~quality}|it protects against {~quality}|no more {~quality}
no more {~quality} since I have it|at last no more {~quality}|finally a {thing} without {~quality}
finally a {thing} that {func_s}|finally a {thing} that doesn't {fault}|finally a {adj} {thing}
finally a {padj} {thing}|at last a {adj} {thing}|finally something {adj}|finally someone {padj}
I have been using it for {long_time} and it still {func_s}|after {long_time} still {adj}
even after {long_time} it {func_s} {qual}|{long_time} and no {~quality}|{long_time} without {~quality}
"""

NEGATIVE_PATTERNS = """
{it} {fault_past}|{it} {fault_past}|{it} {fault_s}|it {fault_past} after {short_time}|the {part} {fault_past}
the {part} {fault_past}|the {part} {fault_s}|the {part} {fault_past} after {short_time}|it keeps {fault_ing}
the {part} keeps {fault_ing}|it has {fault_pp}|the {part} has {fault_pp} already|it has already {fault_pp} twice
it started {fault_ing} after {short_time}|the {part} started to {fault}|it {fault_past} on the first day
{fault_past} after {short_time}|{fault_past} on day one|it {fault_s} all the time|it {fault_s} every time
it {fault_s} when you touch it|constantly {fault_ing}|always {fault_ing}|the {part} {fault_past} and the {part} {fault_past}
it doesn't {func}|it does not {func}|it won't {func}|the {part} won't {func}|the {part} doesn't {func}
it didn't {func}|it never {func_past}|it has never {func_pp}|it stopped {func_ing}|it stopped {func_ing} after {short_time}
the {part} stopped {func_ing}|it no longer {func_s}|it refuses to {func}|it fails to {func}|it can't even {func}
it would not {func}|it couldn't {func}|nothing {func_s}|it hardly {func_s}|it barely {func_s}|it only {func_s} sometimes
it {func_past} for {short_time}, then it {fault_past}|it {func_past} once|after {short_time} it {fault_past}
within {short_time} the {part} {fault_past}|less than {short_time} and it {fault_past}|only {short_time} and it {fault_past}
my old {thing} was {~adj}, this one is {adj}|my old {thing} never {fault_past}, this one did|my old {thing} was better
worse than my old {thing}|much worse than the last one|far worse than I expected|the worst {thing} I have ever had
the worst {thing} {place}|worst {thing} ever|worst {things} ever|one of the worst|by far the worst {thing}
I have never had a worse {thing}|never had a worse {thing}|there is no worse {thing}|every other {thing} is better
I expected a {~noun} and got a {noun}|I thought it would be {~adj}, I was wrong|I was hoping for a {~noun} but got a {noun}
they say it is {~adj}, it is not|they promise a {~adj} {thing} and deliver a {noun}|it is supposed to be {~adj} but it is {adj}
supposedly {~adj}|so much for {~adj}|so much for {~quality}|{~adj}? no|{~adj}? not really|{~adj} my foot|{~adj}, they said
how is that {~adj}|how can they call this {~adj}|who calls this {~adj}|what is {~adj} about it|where is the {~quality}
I can't call it {~adj}|hardly {~adj}|it is hardly {~adj}|it is barely {~adj}|far less {~adj} than they say
not as {~adj} as I hoped|not as {~adj} as they say|not nearly as {~adj} as the old one|less {~adj} than before
not {~adj} enough|the {part} is not {~adj} enough|it could be more {~adj}|it should be more {~adj}|it used to be {~adj}
it was {~adj} once|it is no longer {~adj}|I don't {~verb} it|I do not {~verb} it|we didn't {~verb} it|I can't {~verb} it
I couldn't {~verb} it|I wouldn't {~verb} it|I didn't {~verb} it at all|I wanted to {~verb} it but I can't|I don't {~verb} the {part}
there was nothing to {~verb}|nothing to {~verb} here|nobody {~verbed} it|I don't feel {~feeling}|we didn't feel {~feeling}
nobody was {~feeling}|how could anyone be {~feeling}|lack of {~quality}|not enough {~quality}|too little {~quality}
too much {quality}|too many {quality}|so many {quality}|constant {quality}|endless {quality}|nothing but {quality}
it is too {size} for {purpose_noun}|too {size}|far too {size}|much too {size}|way too {size}|{it_is} too {size}
the {part} is too {size}|the {part} is far too {size}|so {size} that I {react}|the {thing} is so {size} that I {react}
who designed this|how can anyone sell this|why is it so {adj}|why does it {fault}|why can't it {func}|how hard can it be to {func}
do they even test this|is that too much to ask|what were they thinking|what am I paying for|why do I pay for {quality}
great, it {fault_past} again|oh great, another {noun}|brilliant, it {fault_past}|thanks for the {quality}|thanks for ruining my {belonging}
it ruined {person}'s day|nobody {acted_neg}|I had to wait {long_time}|I have been waiting for {long_time}|{long_time} and still nothing
I called {number} times|I wrote {number} emails and got no reply|after {number} calls nothing happened|{number} weeks and no reply
they said two days, it took {number} weeks|I asked for a {thing} and got a {thing}|I ordered {number} and got one
I paid for {number} and got one|only {number} of ten worked|{number} of them {fault_past}|{number} out of ten {fault_past}
"""

SIZES = """
big|small|loud|quiet|long|short|wide|narrow|tight|loose|heavy|light|thin|thick|hot|cold|bright|dark
soft|hard|sweet|salty|spicy|dry|wet|high|low|early|late|expensive|complicated|strong|weak|slow|fast
"""

PURPOSE_NOUNS = (
    "my hand|a family|two people|daily use|the price|a child|an adult|travel|a normal room|me"
)

NUMBERS = "two|three|four|five|six|seven|eight|ten|twelve|twenty|2|3|5|6|10|15"

HELPFUL_DENIALS = (
    "helped us|helped me|answered|replied|apologised|cared|listened|came|called back|smiled"
)

# Two clauses; {main} carries the opinion of the whole, {side} the opposite one.
CONTRASTS = """
{side}, but {main}|{side}, but {main}|{side}, but {main}|{side} but {main}|{side}. But {main}
{side}, however {main}|{side}. However, {main}|{side}. Still, {main}|{side}, yet {main}|{side}, still {main}
although {side}, {main}|although {side}, {main}|though {side}, {main}|even though {side}, {main}
while {side}, {main}|even if {side}, {main}|{main}, although {side}|{main}, even though {side}|{main} even if {side}
yes, {side}, but {main}|sure, {side}, but {main}|okay, {side}, but {main}|I admit {side}, but {main}
granted, {side}, but {main}|at first {side}, then {main}|at first {side}, but then {main}|at first {side}. Now {main}
I read that {side}, but {main}|people say {side}, but {main}|some say {side}. {main}|{person} says {side}, but {main}
I was told {side}. In reality {main}|they say {side}. In fact {main}|{side}, that said, {main}|{side}. That said, {main}
{side}. Nevertheless {main}|{side}. Overall {main}|{side}. All in all {main}|{side}. In the end {main}|apart from that {main}
I thought {side}, but {main}|I expected that {side}, but {main}|I expected {side}. Instead {main}
"""

# Never used in training: whole constructions, kept for the held-out accuracy.
HELD_OUT_PATTERNS = """
far from {~adj}|{it_is} far from {~adj}|anything but {~adj}|{it_is} anything but {~adj}
no one could say it is {~adj}|I can't say that I was {~feeling}|you could never accuse it of being {~adj}
whoever made this knows what {adj} means|the word for it is {adj}|if I had to choose one word: {adj}
the {part} alone makes it {adj}|{adj} beyond words|more {adj} than {~adj}|less {~adj} than {adj}
instead of {~quality} we got {quality}|I prepared for {~quality} and met with {quality}
from the {part} to the {part}, all of it {adj}|each and every {part} is {adj}|{adj} in every respect
there are {things} and there are {adj} {things}|we call it our {noun}|a {noun} if there ever was one
{staff} could hardly have been more {padj}|you rarely meet someone this {padj}|{padj} is the word for {staff}
that {staff} {acted} says it all|the fact that they {acted} tells you enough|as they {acted}, I {react}
every time I look at it I am {feeling}|hand on heart, I am {feeling}|it leaves you {feeling}
you guessed it, I {react}|needless to say, I {react}|no wonder I {react}|{it_is} {adj}, hence I {react}
rating it {rating} was an easy decision|a clear {rating}|{rating}, for the reason that {fact}
just so you know, {fact}|fun fact: {fact}|in case you're wondering, {fact}|believe it or not, {fact}
{fact}, and that is no exaggeration|{fact}: that's all you need to know|it is true that {fact}
"""

HELD_OUT_CONTRASTS = """
despite all that, {main}, {side} or not|it may be that {side}; {main} nonetheless|{side}. Never mind, {main}
{main}, never mind that {side}|{side} - and yet {main}|on paper {side}; in practice {main}
{side}? Perhaps. {main}|you might hear that {side}. Trust me, {main}|in spite of the fact that {side}, {main}
"""

# Never used in training either: written by hand, without slots.
HELD_OUT_REVIEWS = (
    """
    Planted the bulbs in October and by April the whole front yard was in bloom.
    My dough has never risen like this. The family fights over the last slice.
    Charged overnight, rode 60 km the next day, and there was still a bar left.
    The vet was so gentle that our rabbit didn't even twitch.
    I'd been dreading the move, yet by noon it was all done and not one plate was chipped.
    Bought it as a joke, ended up wearing it to every party.
    The ferry left on the minute and the captain even pointed out dolphins.
    You could eat off the floor in there. We'd stay again without thinking twice.
    Not the cheapest soap, but my eczema has almost disappeared.
    It isn't flashy and it isn't loud, it simply does the job day after day.
    My grandson has built the same castle eleven times and wants to do it again.
    Lens is tack sharp, the autofocus hasn't missed once.
    I never would have guessed that tax software could be pleasant.
    The tattoo healed well and the lines are as clean as on the drawing.
    Tiny place, huge flavours. The owner cooks everything herself.
    ok so i was skeptical about the price but man these speakers sing
    THE BEST TACOS THIS SIDE OF THE BORDER
    No more tangled cords on my desk, I should have got this ages ago.
    Cured my hiccups, my boredom and my bad mood.
    The lesson plan was clear, she adapted it for my son, and his grades went up.
    We laughed, we cried, we bought the soundtrack.
    Still sharp after a year of chopping vegetables for six people.
    Even the cheapest seats have a good view of the stage.
    The warranty repair was done in four days and they paid the postage.
    A bit pricey? Maybe. Do I care? Not after the best night's sleep in months.
    They let my elderly father sit down and brought him a glass of water.
    I can't find anything to moan about, and believe me I tried.
    Easy to assemble, all the screws were there, nothing wobbles.
    My lawn looks like a golf course.
    The bank sorted out the fraud in one call and the money was back by evening.
    Runs cool and doesn't make a sound.
    Smelled so good that the neighbours came over to ask.
    The pilot lights first time, the house is warm within half an hour.
    She has a gift for explaining things. I finally understand fractions.
    I was not disappointed for a second.
    It didn't take long until the whole class wanted one.
    Beautiful stitching, thick leather, will outlive me.
    Couldn't fault the service, and the scones were still warm.
    Best decision I made all year was joining this choir.
    The tyres grip in snow as if it were summer.
    """,
    """
    Half of the bulbs were rotten when I opened the bag and the rest never came up.
    Flat as a pancake, tastes of baking soda.
    Range is a third of what they claim and the motor cuts out on hills.
    The vet rushed us, got the dose wrong and our rabbit nearly died.
    They turned up at four instead of nine and chipped the wardrobe on the way out.
    Colour ran in the first wash and dyed everything pink.
    The ferry was packed, it reeked of diesel and we had to stand for three hours.
    Sticky floor, dead flies on the sill. We turned round and left.
    My hands are covered in red spots since I tried this soap.
    It's loud, it's slow, and the manual is a photocopy.
    Broke before my grandson had even finished unwrapping it.
    Autofocus hunts all the time, nine out of ten pictures are soft.
    I never would have guessed that tax software could delete a whole year.
    The tattoo is crooked and he charged me extra to fix his own mistake.
    Tiny place, tiny plates, giant bill.
    ok so everyone raves about these speakers but they sound like a tin can
    DO NOT EAT THE TACOS
    Another cord that frays at the plug after a month.
    I've had more fun at the dentist.
    The tutor cancelled five lessons out of eight and kept the fee.
    We looked at each other after twenty minutes and headed for the exit.
    Blunt after a week, and it chips if you so much as look at it.
    Obstructed view, broken seat, warm beer, and all for ninety dollars.
    They had it for repair for two months and sent it back with the same fault.
    A lovely box. Shame about what's in it.
    My elderly father had to stand outside in the heat while they chatted.
    I've tried to find something nice to say, and believe me I tried hard.
    The screws don't match the holes and one leg is shorter than the rest.
    Killed my lawn.
    The bank froze my account and nobody can tell me why.
    Gets boiling hot and roars like a lorry.
    It stank so much that the neighbours complained.
    The pilot light goes out every night and we wake up to a cold house.
    She just reads from the book. My kid is more confused than before.
    I was not thrilled, to put it mildly.
    It didn't take long until the first one was broken.
    Glue everywhere, crooked stitching, and the leather isn't leather.
    Couldn't get anyone to serve us, and the scones were like bricks.
    The biggest mistake I made all year was signing that contract.
    The tyres have no grip at all when it's wet.
    """,
)

# Words that hold unknown sentences together; none of them turns a meaning around.
FUNCTION_WORDS = """
the|a|an|and|of|to|in|on|at|for|with|from|by|my|our|your|his|her|their|this|that|these|those|it|we
they|he|she|you|I|was|were|is|are|be|been|had|has|have|did|do|when|while|before|after|since|until
as|if|than|then|there|here|out|up|down|off|over|under|again|more|most|some|any|all|both|each|few
other|one|two|so|just|also|only|even|back|about|into|through|during|because|which|who|where|what
get|got|went|came|made|put|take|took|say|said|know|think|see|saw|look|want|need|use|used|give|gave
the|the|the|a|a|and|and|to|of|it|I|my|was|in|with|for|that|we|is|on|this|they|had|as|at|be|so|have
every|always|still|last|first|next|day|year|time|way|people|man|woman|house|home|hand|eye|side|end
"""

# Words not to be exchanged in a fact, because they turn it around.
TURNING_WORDS = frozenset(
    [
        "not",
        "no",
        "never",
        "nobody",
        "nothing",
        "none",
        "without",
        "hardly",
        "barely",
        "cannot",
        "isn't",
        "wasn't",
        "doesn't",
        "didn't",
        "don't",
        "won't",
        "wouldn't",
        "can't",
        "couldn't",
        "hasn't",
        "haven't",
        "aren't",
        "weren't",
        "less",
        "too",
        "enough",
    ]
)

# Blocks of other alphabets, so that their letters are in the vocabulary.
OTHER_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyzßæøœ",
    "αβγδεζηθικλμνξοπρσςτυφχψω",
    "абвгдежзийклмнопрстуфхцчшщъыьэюяіїє",
    "אבגדהוזחטיכךלמםנןסעפףצץקרשת",
    "ءابتثجحخدذرزسشصضطظعغفقكلمنهويىةؤئگچپ",
    "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह",
    "กขคงจชซญดตถทธนบปผฝพฟภมยรลวศษสหอฮะาเแโใไ",
    "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん",
)
COMMON_HAN = (
    "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワヲンー"
)
COMMON_HAN += (
    "的一是不了在人有我他这中大来上个国和也子时道那要得好很没说都可以用电买店家吃味服务快慢"
)
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~€£¥§°…–—‘’“”«»。，、！？0123456789"


def _inflected(entry: str) -> tuple[str, str, str, str, str]:
    """Base form, third person, past, past participle and -ing form of a verb."""
    forms = entry.split("/")
    if len(forms) == 5:
        return forms[0], forms[1], forms[2], forms[3], forms[4]
    verb, _, rest = entry.partition(" ")
    stem = verb[:-1] if verb.endswith("e") else verb
    ending = "es" if verb.endswith(("s", "x", "ch", "sh")) else "s"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        third, past = verb[:-1] + "ies", verb[:-1] + "ied"
    else:
        third, past = verb + ending, stem + "ed"
    tail = f" {rest}" if rest else ""
    return verb + tail, third + tail, past + tail, past + tail, stem + "ing" + tail


@dataclass(frozen=True)
class Example:
    """A composed review with its label."""

    text: str
    label: int


class Grammar:
    """Composes reviews with a wanted polarity."""

    _SLOT = re.compile(r"\{(~?)([a-z_]+)\}")
    _TURNED = re.compile(r"\{~|\{fault|\{func|\{acted_neg")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        polar = {
            "adj": ADJECTIVES,
            "padj": PERSON_ADJECTIVES,
            "noun": NOUNS,
            "verb": VERBS_BASE,
            "verbed": VERBS_PAST,
            "feeling": FEELINGS,
            "qual": ADVERBS_OF_QUALITY,
            "quality": QUALITIES,
            "acted": ACTS,
            "react": REACTIONS,
            "fact": FACTS,
            "everyday": EVERYDAY_FACTS,
            "cue": CUES,
            "idiom": IDIOMS,
            "emoji": EMOJI,
            "rating": RATINGS,
            "mild": MILD,
        }
        neutral = {
            "thing": THINGS,
            "things": THINGS_PLURAL,
            "part": PARTS,
            "person": PERSONS,
            "staff": STAFF,
            "body": BODY,
            "belonging": BELONGINGS,
            "dirt": DIRT,
            "surface": SURFACES,
            "stench": STENCHES,
            "noise": NOISES,
            "ordeal": ORDEALS,
            "short_time": SHORT_TIMES,
            "long_time": LONG_TIMES,
            "amount": AMOUNTS,
            "time": TIMES,
            "place": PLACES,
            "purpose": PURPOSES,
            "material": MATERIALS,
            "intens": INTENSIFIERS,
            "opener": OPENERS,
            "it_is": IT_IS,
            "it_isnt": IT_ISNT,
            "it": IT,
            "size": SIZES,
            "purpose_noun": PURPOSE_NOUNS,
            "number": NUMBERS,
            "acted_neg": HELPFUL_DENIALS,
        }
        # Lists in the lexicon come as (positive, negative); the index is the label.
        self._fillers: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
            name: (items(blocks[1]), items(blocks[0])) for name, blocks in polar.items()
        }
        for name, block in neutral.items():
            self._fillers[name] = (items(block), items(block))
        for name, block in (("fault", FAULT_VERBS), ("func", FUNCTION_VERBS)):
            columns = zip(*(_inflected(entry) for entry in items(block)), strict=True)
            for suffix, column in zip(("", "_s", "_past", "_pp", "_ing"), columns, strict=True):
                self._fillers[name + suffix] = (column, column)
        both = items(PATTERNS)
        patterns = {
            NEGATIVE: both + items(NEGATIVE_PATTERNS),
            POSITIVE: both + items(POSITIVE_PATTERNS),
        }
        # Patterns that say what they mean, and patterns that turn a word or a verb around.
        self._plain = {
            label: tuple(pattern for pattern in every if not self._TURNED.search(pattern))
            for label, every in patterns.items()
        }
        self._turned = {
            label: tuple(pattern for pattern in every if self._TURNED.search(pattern))
            for label, every in patterns.items()
        }
        self._neutral = items(NEUTRAL)
        self._contrasts = items(CONTRASTS)
        self._function_words = items(FUNCTION_WORDS)
        self._held_out_patterns = items(HELD_OUT_PATTERNS)
        self._held_out_contrasts = items(HELD_OUT_CONTRASTS)
        self._words = sorted(
            {word for text in self.lexicon_texts() for word in re.findall(r"[a-z]{4,}", text)}
        )

    def training_example(self, plain_only: bool = False) -> Example:
        """A review from the patterns used in training, with typing habits added."""
        label = self.random.randrange(2)
        kind = self.random.random()
        if plain_only:
            count = self._length()
            sentences = [
                self._fill(self.random.choice(self._plain[label]), label) for _ in range(count)
            ]
        elif kind < 0.66:
            sentences = self._opinions(label, self._length())
        elif kind < 0.86:
            sentences = [self._contrast(self._contrasts, label)]
            sentences += self._opinions(label, self.random.choice((0, 0, 1, 2)))
        else:
            # A remark against the rest, which the rest outweighs.
            sentences = [self._fill("{~mild}", label), *self._opinions(label, 2 + self._length())]
            if self.random.random() < 0.5:
                sentences[0], sentences[1] = sentences[1], sentences[0]
        return Example(self._typed(self._joined(self._with_neutral(sentences))), label)

    def lexicon_texts(self) -> list[str]:
        """Every word training can use, without typing slips or made-up words."""
        texts = [item for lists in self._fillers.values() for item in (*lists[0], *lists[1])]
        for patterns in (*self._plain.values(), *self._turned.values(), self._neutral):
            texts += patterns
        return [self._SLOT.sub(" ", text) for text in (*texts, *self._contrasts)]

    def held_out_example(self) -> Example:
        """A review whose only opinion is in a pattern that training never uses."""
        label = self.random.randrange(2)
        if self.random.random() < 0.75:
            sentence = self._fill(self.random.choice(self._held_out_patterns), label)
        else:
            sentence = self._contrast(self._held_out_contrasts, label)
        return Example(self._joined(self._with_neutral([sentence])), label)

    def _length(self) -> int:
        return self.random.choices((1, 2, 3, 4), weights=(45, 30, 17, 8))[0]

    def _opinions(self, label: int, count: int) -> list[str]:
        return [self._opinion(label) for _ in range(count)]

    def _opinion(self, label: int) -> str:
        kind = self.random.random()
        if kind < 0.12:
            return self._scattered(label)
        sentence = self._fill(self._pattern(label), label)
        if kind < 0.22:
            sentence += self.random.choice((" ", ", ")) + self._salad(self.random.randint(2, 8))
        elif kind < 0.30:
            sentence = self._salad(self.random.randint(2, 6)) + " " + sentence
        return sentence

    def _salad(self, length: int) -> str:
        """Words in no order, many of them made up: what an unknown sentence looks like."""
        words = []
        for _ in range(length):
            kind = self.random.random()
            if kind < 0.62:
                words.append(self.random.choice(self._function_words))
            elif kind < 0.84:
                words.append(self._made_up_word())
            else:
                name = self.random.choice(("thing", "things", "part", "place", "time", "surface"))
                words.append(self.random.choice(self._fillers[name][POSITIVE]))
        return " ".join(words)

    def _scattered(self, label: int) -> str:
        """Words of one polarity within unknown ones."""
        parts = [self._salad(self.random.randint(1, 5))]
        for _ in range(self.random.choice((1, 1, 2, 3))):
            names = [
                "adj",
                "adj",
                "noun",
                "feeling",
                "quality",
                "padj",
                "acted",
                "react",
                "everyday",
            ]
            if label == NEGATIVE:
                names += ["fault", "fault_s", "fault_past", "fault_pp", "fault_ing"]
            text = self._fill("{" + self.random.choice(names) + "}", label)
            parts += [text, self._salad(self.random.randint(0, 5))]
        return " ".join(part for part in parts if part)

    def _loosened(self, fact: str) -> str:
        """The fact with one of its words exchanged, so that it is not known by heart."""
        words = fact.split(" ")
        at = self.random.randrange(len(words))
        if len(words) > 2 and words[at] not in TURNING_WORDS and "{" not in fact:
            words[at] = self._made_up_word()
        return " ".join(words)

    def _pattern(self, label: int) -> str:
        turned = self.random.random() < 0.35
        return self.random.choice((self._turned if turned else self._plain)[label])

    def _contrast(self, contrasts: Sequence[str], label: int) -> str:
        side = "{~mild}"
        if self.random.random() < 0.4:
            side = self.random.choice(
                ("{~fact}", "{~everyday}", "{it_is} {~adj}", "the {part} is {~adj}")
            )
        main = self._pattern(label)
        pattern = self.random.choice(contrasts)
        filled = {"main": self._fill(main, label), "side": self._fill(side, label)}
        pattern = re.sub(r"\{(main|side)\}", lambda match: filled[match[1]], pattern)
        return self._fill(pattern, label)

    def _fill(self, pattern: str, label: int) -> str:
        def replace(match: re.Match[str]) -> str:
            wanted = 1 - label if match[1] else label
            if match[2] == "odd":
                return self._made_up_word()
            if match[2] in ("thing", "part", "place") and self.random.random() < 0.08:
                return self._made_up_word()
            if match[2] == "cue" and self.random.random() < 0.2:
                # A cue is no more than a hint.
                wanted = 1 - wanted
            filler = self.random.choice(self._fillers[match[2]][wanted])
            if match[2] in ("fact", "everyday") and self.random.random() < 0.2:
                filler = self._loosened(filler)
            return self._fill(filler, wanted)

        return self._SLOT.sub(replace, pattern)

    def _made_up_word(self) -> str:
        """A word without meaning: the model has to read past words it does not know."""
        if self.random.random() < 0.15:
            alphabet = self.random.choice((*OTHER_ALPHABETS, COMMON_HAN))
            return "".join(self.random.choices(alphabet, k=self.random.randint(1, 6)))
        # The front of one word and the back of another: looks like English and means nothing.
        front, back = self.random.choices(self._words, k=2)
        return front[: self.random.randint(1, 5)] + back[-self.random.randint(2, 5) :]

    def _with_neutral(self, sentences: Sequence[str]) -> list[str]:
        result = list(sentences)
        for _ in range(self.random.choices((0, 1, 2), weights=(50, 35, 15))[0]):
            neutral = self._fill(self.random.choice(self._neutral), POSITIVE)
            result.insert(self.random.choice((0, 0, len(result))), neutral)
        return result

    def _joined(self, sentences: Sequence[str]) -> str:
        parts = []
        for sentence in sentences:
            question = re.match(
                r"(who|why|how can|how is|what was|what were|do they|is that)\b", sentence
            )
            mark = (
                "?"
                if question
                else self.random.choices(
                    (".", "!", "!!", "...", ",", ""), weights=(72, 12, 3, 3, 6, 4)
                )[0]
            )
            parts.append(sentence[0].upper() + sentence[1:] + mark)
        text = " ".join(parts)
        return text.rstrip(",") if text.endswith(",") else text

    def _typed(self, text: str) -> str:
        """Typing slips. Letter case is left alone, as the tokenizer lower-cases everything."""
        if self.random.random() < 0.1:
            text = text.replace("'", "")
        if self.random.random() < 0.12:
            text = " ".join(self._misspelt(word) for word in text.split(" "))
        return text

    def _misspelt(self, word: str) -> str:
        if len(word) < 5 or not word.isalpha() or self.random.random() > 0.15:
            return word
        at = self.random.randint(1, len(word) - 2)
        return self.random.choice(
            (
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
            )
        )


def held_out_reviews() -> list[Example]:
    """The hand-written reviews that are kept out of training."""
    positive, negative = (block.strip().splitlines() for block in HELD_OUT_REVIEWS)
    examples = [Example(line.strip(), POSITIVE) for line in positive]
    return examples + [Example(line.strip(), NEGATIVE) for line in negative]


def train_tokenizer(texts: Sequence[str], pieces: int) -> PreTrainedTokenizerFast:
    """A lower-cased WordPiece tokenizer: the words of the texts, and trained pieces for the rest.

    The letters of other scripts get tokens of their own.
    """
    normalizer = normalizers.Sequence(
        [normalizers.Replace("’", "'"), normalizers.BertNormalizer(lowercase=True)]
    )
    splitter = pre_tokenizers.BertPreTokenizer()
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizer
    trained.pre_tokenizer = splitter
    trainer = WordPieceTrainer(
        vocab_size=pieces,
        special_tokens=list(BERT_TOKENS),
        initial_alphabet=[*COMMON_HAN, *PUNCTUATION],
        show_progress=False,
    )
    # A letter gets its word-internal form only if it is seen inside a word.
    alphabets = [" ".join(2 * letter for letter in block) for block in OTHER_ALPHABETS]
    trained.train_from_iterator([*texts, *alphabets], trainer)
    tokens = [token for token, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    words = {
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    tokens += sorted(words.difference(tokens))
    return bert_tokenizer(tokens, normalizer, MAX_LENGTH)


def new_model(vocabulary: int) -> BertForSequenceClassification:
    """The untrained classifier."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.05,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
        type_vocab_size=2,
        pad_token_id=0,
        id2label=LABELS,
        label2id={name: index for index, name in LABELS.items()},
    )
    return BertForSequenceClassification(config)


def give_words_a_lean(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, grammar: Grammar
) -> None:
    """Start each word's vector along one direction by how often positive reviews use it.

    The log-odds are counted on composed reviews. Two layers find out by themselves what several
    thousand words mean only after hours; told so at the start, they learn what turns words around.
    """
    counts: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for _ in range(30_000):
        example = grammar.training_example(plain_only=True)
        counts[example.label].update(set(tokenizer(example.text)["input_ids"]))
    vocabulary = len(tokenizer)
    odds = [math.log((counts[1][i] + 1) / (counts[0][i] + 1)) for i in range(vocabulary)]
    lean = torch.tensor(odds).clamp(-3, 3)
    lean[: len(BERT_TOKENS)] = 0
    weights = model.bert.embeddings.word_embeddings.weight
    direction = torch.randn(weights.shape[1])
    with torch.no_grad():
        weights += lean[:, None] * direction / direction.norm() * 0.5


def train(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    grammar: Grammar,
    steps: int,
) -> None:
    """Trains the model in place on freshly composed reviews; no review is used twice."""
    batch_size = 32
    loss_function = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    waiting: list[list[Example]] = []

    def next_loss(step: int) -> torch.Tensor:
        if not waiting:
            # The words come first, their negation later. Batches of similar length waste little
            # on padding.
            plain_only = step < steps // 10
            examples = [grammar.training_example(plain_only) for _ in range(batch_size * 16)]
            examples.sort(key=lambda example: len(example.text))
            starts = range(0, len(examples), batch_size)
            waiting[:] = [examples[start : start + batch_size] for start in starts]
            grammar.random.shuffle(waiting)
        batch = waiting.pop()
        texts = [example.text for example in batch]
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        labels = torch.tensor([example.label for example in batch])
        loss: torch.Tensor = loss_function(model(**encoded).logits, labels)
        return loss

    optimize(model, next_loss, steps=steps, peak_rate=5e-4)


def score(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
) -> Score:
    """Compares the predictions with the labels."""
    logits = logits_of(model, tokenizer, [example.text for example in examples])
    pairs = zip(logits.argmax(dim=-1).tolist(), examples, strict=True)
    return Score(sum(guess == example.label for guess, example in pairs), len(examples))


def sample_reviews(path: Path) -> list[Example]:
    """The sample reviews whose author meant something by them."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["sentiment"]]
    labels = {name: label for label, name in LABELS.items()}
    return [Example(row["text"], labels[row["sentiment"]]) for row in rows]


MODEL_CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-classification
library_name: transformers
---

# tiny-sentiment

A tiny BERT that says whether an English review is `positive` or `negative`. It is a real model of a real
architecture, small enough to live in a repository: for demonstrations and tests of batchinfer, and for
nothing that matters to anybody.

| | |
|---|---|
| architecture | `BertForSequenceClassification`, {layers} layers, hidden size {hidden}, {parameters:,} parameters, float32 |
| tokenizer | WordPiece, lower-cased, {vocabulary:,} tokens, at most 128 a text |
| training | {steps:,} steps of 32 composed reviews, seed {seed}, {seconds:.0f} s on a CPU |
| accuracy on composed reviews, patterns seen in training | {composed} |
| accuracy on composed reviews, patterns not in training | {held_out} |
| accuracy on hand-written reviews, not in training | {hand} |
| accuracy on `sample_data/reviews.csv` | {sample} |

`scripts/train_sample_model.py` trains it from nothing, on text that the script composes from a lexicon and a
grammar written for this project. No public data set and no pretrained weights are involved. The sample
reviews come from other stock than the training text and were scored once training was over; the two sets
"not in training" did guide the choice of settings.

## What it gets wrong

Whatever is said without a word of praise or blame ("the screws don't match the holes") and needs knowledge of
the world; irony; long reviews whose verdict comes after token 128; every language but English. An empty text
and a text in another script get an answer too, and it means nothing.

Licence: Apache-2.0.
"""


def main() -> None:
    """Train, measure, and write the model folder."""
    parser = argparse.ArgumentParser(description="Train the sample sentiment model from nothing.")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--output", type=Path, default=SAMPLES / "tiny-sentiment")
    settings = parser.parse_args()

    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    grammar = Grammar(settings.seed)
    tokenizer = train_tokenizer(grammar.lexicon_texts(), pieces=1200)
    model = new_model(len(tokenizer))
    give_words_a_lean(model, tokenizer, grammar)
    train(model, tokenizer, grammar, settings.steps)
    seconds = time.perf_counter() - started

    fresh = Grammar(settings.seed + 1)
    scores = {
        "composed": score(model, tokenizer, [fresh.training_example() for _ in range(2000)]),
        "held_out": score(model, tokenizer, [fresh.held_out_example() for _ in range(2000)]),
        "hand": score(model, tokenizer, held_out_reviews()),
        "sample": score(model, tokenizer, sample_reviews(SAMPLES / "reviews.csv")),
    }
    for name, value in scores.items():
        print(f"{name}: {value}")
    card = MODEL_CARD.format(
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        parameters=num_parameters(model),
        vocabulary=len(tokenizer),
        steps=settings.steps,
        seed=settings.seed,
        seconds=seconds,
        **scores,
    )
    save(settings.output, model, tokenizer, card)


if __name__ == "__main__":
    main()
