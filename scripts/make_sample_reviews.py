"""Write the sample reviews: the same 1,000 records as JSONL, CSV and Parquet.

    python scripts/make_sample_reviews.py --output sample_data

Every sentence below was written for this project. Most reviews are put together from the notes of
one product domain (an opening, one or more observations, a verdict), some are whole reviews, and
about two dozen are awkward on purpose: they are the rows that break a careless reader or model.
Exactly one record is broken: a JSON line cut in the middle, a CSV row with too few fields, and a
Parquet row whose text is null.

The training script of the sample model has its own, different sentences, so that the accuracy of
the model on these reviews says something.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

Item = TypeVar("Item")

SEED = 20260
RECORDS = 1000
BROKEN_INDEX = 612
LONG_TEXT_CHARACTERS = 20_000

POSITIVE = "positive"
NEGATIVE = "negative"

# One block per product. The first character of a line says what the line is:
#   ~ opening (no opinion)        + praise               - complaint
#   / small complaint, a clause   * small praise, a clause
#   > verdict in favour           < verdict against
DOMAIN_NOTES = """
# headphones
~ Bought these for the train to work.
~ My old pair finally died after six years so I went looking.
~ These replaced some cheap buds from the supermarket.
~ I wear them about five hours a day for calls.
~ Got the black ones in the autumn sale.
~ A present from my sister, who knows far more about audio than I do.
+ The bass is deep without drowning out the singer.
+ I can hear little details in songs I have known for twenty years.
+ The noise cancelling makes the bus disappear completely.
+ They sit so lightly on my head that I forget I have them on.
+ One charge gets me through the whole working week.
+ Pairing took about four seconds and it has remembered my phone ever since.
+ People on calls say I sound clearer than when I'm in the room.
+ The folding case is sturdy and fits my coat pocket.
+ Voices in podcasts are crisp even at low volume.
+ I dropped them on concrete twice and there's barely a mark.
+ The ear cushions stay cool, even in July.
- The left side went silent on day nine.
- Everything sounds as if it were coming through a wet towel.
- They pinch so hard I get a headache after half an hour.
- The connection drops every time I put the phone in my back pocket.
- There's a constant hiss as soon as the music pauses.
- The headband snapped at the hinge with no force at all.
- Battery is flat by lunchtime, nowhere near the thirty hours on the box.
- Callers keep asking me if I'm standing in a tunnel.
- The touch controls skip the track whenever I brush my hair away.
- The padding is already peeling off in black flakes.
- Treble so sharp that cymbals hurt.
/ the charging cable is laughably short
/ the app wants an account before it lets you change anything
/ they are a little tight the first few days
* they do look smart
* the box is beautiful
* the bass is fine
> Best sound I've had anywhere near this price.
> Music is fun again, what more can I say.
< My ten year old wired ones beat these easily.
< I've gone back to the free earphones that came with my phone.

# laptop
~ Needed something for university that wouldn't break my back.
~ I do spreadsheets, email and the odd video call on it.
~ Ordered the 16 GB version in grey.
~ Second laptop from this maker in our house.
~ Had it for just over three months.
~ Picked this one after comparing about a dozen models.
+ Wakes from sleep before the lid is fully open.
+ The keyboard is a joy, I type faster on it than on my desktop.
+ Eight hours of lectures and still 30 percent left in the battery.
+ Even with forty tabs open nothing stutters.
+ The screen is bright enough to work on the balcony.
+ You never hear the fan, not even during video calls.
+ It weighs next to nothing in my backpack.
+ Setting it up took ten minutes and there was no junk software to remove.
+ The trackpad is smooth and precise, I've stopped carrying a mouse.
+ Feels solid, nothing bends or creaks when you pick it up by a corner.
+ Opening it up to add memory was easy, four screws and done.
- It freezes about twice a day and I lose whatever I was writing.
- The fan screams as soon as you open a browser.
- Three dead pixels right in the middle of the screen.
- The hinge already wobbles and the lid won't stay up.
- Gets so hot you can't have it on your lap.
- Wi-Fi disconnects every few minutes while every other device in the house is fine.
- The space bar only works if you hit it dead centre.
- Battery drops from 60 to zero without warning.
- Came loaded with trial software that pops up all day long.
- The charger buzzes and smells of burning plastic.
- Blue screen on the very first evening.
/ the speakers are a bit tinny
/ two more ports would not have hurt
/ the webcam is nothing special
* the screen is pretty
* the case looks expensive
* it was quick for the first week
> It just gets out of my way and lets me work.
> For the money I doubt you'll find a better machine.
< Sent it back and bought something else.
< A paperweight with a keyboard.

# phone
~ Upgraded from a model that was five years old.
~ I'm not a heavy user, mostly messages and photos.
~ Bought it unlocked, direct from the maker.
~ This is my first phone from this brand.
~ My daughter picked the colour.
~ Switched after my last one fell in a lake.
+ Photos at dusk come out clear and full of colour.
+ It lasts two days between charges, which I'd stopped believing was possible.
+ Moving everything over from the old phone was painless.
+ The size is just right for one hand.
+ Video is steady even when I'm running after the dog.
+ The fingerprint reader gets it right first time, even with wet hands.
+ Survived a fall down the stairs without a scratch.
+ Apps open instantly.
+ The screen is gorgeous, text looks printed.
+ Charges from empty to full while I shower and have breakfast.
+ Reception is better than my partner's much dearer phone.
- The screen cracked while it was in my pocket.
- It shuts itself off at 40 percent battery.
- Every photo indoors is a blurry yellow mess.
- Nobody can hear me unless I switch to speaker.
- The last update made it crawl.
- It heats up like a hand warmer when you take a call.
- Charging port stopped accepting any cable after two months.
- Half the storage is taken up by apps you can't delete.
- The microphone crackles on every call.
- Keeps rebooting in the middle of navigation, which got us lost twice.
- Support told me water had got in; it has never been near water.
/ it comes without a charger
/ the back is slippery and needs a case
/ the camera bump makes it rock on the table
* the display is sharp
* the colours are nice
* the camera is decent in daylight
> I see no reason to spend twice as much on a famous name.
> Couldn't be happier with the switch.
< Back to my old phone, cracked corner and all.
< Two repairs in one year says it all.

# kettle
~ We drink a lot of tea in this house.
~ Replaced a whistling kettle from my grandmother.
~ Chose the one with the temperature dial.
~ It's for the office kitchen, about twelve people use it.
~ Bought in the spring together with the matching toaster.
~ One and a half litres, steel, the cheaper of the two models.
+ Boils two cups before I've found the tea bags.
+ Pours cleanly with no dribble down the side.
+ The lid opens wide so getting the scale out is simple.
+ So quiet that I don't have to pause the radio any more.
+ Green tea finally tastes right now that I can set 80 degrees.
+ The handle stays cool.
+ It keeps the water warm for ages.
+ You can see the water level from across the room.
+ Heavy base, so it doesn't slide about.
+ Two years of daily use and not a spot of rust.
+ It switches itself off the moment it boils, every time.
- The water tastes of plastic no matter how often you rinse it.
- It leaked all over the worktop from the very first fill.
- Rust along the seam after three weeks.
- The lid flies open when you pour, and I burnt my hand.
- It takes longer than a pan on the hob.
- Switch fell off in my fingers.
- Tripped the fuse twice on the first day.
- Steam comes out of the handle right where you hold it.
- The window cracked and water ran into the base.
- Doesn't turn itself off, it boiled dry while I was in the garden.
- Bits of white coating float in my tea.
/ the cord could be longer
/ the beep is louder than it needs to be
/ it shows every fingerprint
* it boils fast enough
* the colour matches our kitchen
* it looks stylish on the shelf
> Simple, solid, does the one thing it has to do.
> The whole office has stopped moaning about the tea.
< Dangerous, frankly.
< It's in the bin.

# vacuum cleaner
~ Two cats and a long-haired teenager live here.
~ We have wood floors downstairs and carpet upstairs.
~ Chose the cordless one because of the stairs.
~ First impressions after one month.
~ Came in a big box with six attachments.
~ My mother-in-law has the same one.
+ Picks up cat hair that the old one just pushed around.
+ It's light enough to carry upstairs with one hand.
+ I was shocked by how much dust it pulled out of a carpet I thought was clean.
+ Emptying it takes one click and no cloud of dust.
+ Glides under the sofa without any fuss.
+ The battery is enough for our whole flat, with some to spare.
+ Quiet enough that the dog sleeps through it.
+ The little brush for the car seats is brilliant.
+ Suction is as strong today as it was a year ago.
+ Spare filters are cheap and easy to find.
+ Even my teenager offers to do the hoovering now.
- It scatters crumbs instead of sucking them up.
- Dies after seven minutes, so I need two days to clean one floor.
- The roller jams on every single hair.
- It smells of burnt dust whenever it runs.
- A clip broke off and now the bin won't close.
- Deafening, I have to wear ear plugs.
- The hose split where it meets the handle.
- So heavy that my wrist hurts after one room.
- You have to go over the same spot five times.
- The motor gave up three days after the warranty ended.
- Emptying it means getting grey fluff all over yourself.
/ the cable is on the short side
/ the wall bracket feels flimsy
/ it will not stand up on its own
* it is light
* the attachments are clever
* the bin is easy to empty
> Cleaning takes me half as long as it used to.
> Ought to have bought it years ago.
< A broom does a better job.
< I regret throwing away my old one.

# running shoes
~ I run about thirty kilometres a week, mostly on paths.
~ Third pair I've owned from this series.
~ Got fitted in the shop and then ordered online.
~ I'm a nurse and on my feet for twelve hours.
~ Training for my first half marathon.
~ Took half a size up as other buyers suggested.
+ No blisters, not even on the first long run.
+ My knees have stopped complaining since I changed to these.
+ They feel springy even at the end of a shift.
+ Great grip on wet leaves.
+ After 700 km the sole still has plenty of life.
+ True to size and roomy at the toes.
+ They dry overnight after a soaking.
+ It's like running on a soft lawn.
+ The laces stay tied, a small thing that makes me smile.
+ I knocked two minutes off my usual loop.
+ Wide feet welcome here, finally a brand that gets it.
- The sole came unglued in the second week.
- My heels were bleeding after five kilometres.
- Slippery as soap on wet pavement.
- They run at least a full size small.
- My big toe poked through the mesh within a month.
- The cushioning is gone, I may as well run barefoot.
- One shoe is visibly longer than the other.
- They squeak with every step.
- The arch support digs into my foot.
- The dye ran in the rain and ruined my socks.
- My shins ache every time I wear them.
/ the colour is brighter than in the photo
/ they are not the cheapest
/ the tongue slides to one side now and then
* they look cool
* they are light
* the grip is alright
> Already ordered a second pair before they change the model.
> My feet say thank you.
< Fine for standing still, I suppose.
< Off to the charity shop with them.

# winter jacket
~ We had minus fifteen last week so it got a proper test.
~ I'm 1.80 m and ordered a medium.
~ Needed something for walking the dog at six in the morning.
~ Bought the green one with the hood.
~ This replaces a coat I had worn for ten winters.
~ It was on offer at the end of the season.
+ I stood on a freezing platform for an hour and felt cosy.
+ Rain just rolls off it.
+ Pockets everywhere, and all of them with a zip.
+ The cut is flattering, which is rare for something this warm.
+ It packs down to the size of a loaf.
+ The hood stays up even in a storm.
+ Stitching is neat inside and out.
+ Strangers have asked me where I got it.
+ Came out of the washing machine as good as new.
+ Long enough to cover my back on the bike.
+ Zip runs smoothly even with thick gloves on.
- The zip jammed on the second outing and then came apart.
- Feathers leak from every seam, I look like I've been in a pillow fight.
- Waterproof, they say; I was soaked to the skin in ten minutes.
- The wind goes straight through it.
- A button came off when I took it out of the bag.
- The sleeves end well above my wrists.
- It smelled of chemicals for weeks and washing did not help.
- The lining ripped the first time I put my keys in the pocket.
- Colour faded to a sad grey after one wash.
- The hood blocks half of your view.
- What arrived was thinner than my cardigan.
/ it rustles a bit when you walk
/ the sizing runs a little large
/ there is no inside pocket
* the colour is lovely
* it fits well
* the hood is comfy
> I almost look forward to bad weather now.
> Looks like it cost three times what I paid.
< Fit for a mild evening in May and nothing more.
< Cheap material at a designer price.

# novel
~ Read it on holiday over four days.
~ Our book group picked this for March.
~ I knew nothing about the author before.
~ Listened to half of it as an audiobook.
~ It was recommended by the woman at the shop.
~ Nearly five hundred pages set in a fishing village.
+ I stayed up until three because I had to know how it ended.
+ The characters felt like people I could ring up for a chat.
+ There are lines in here that I've copied into my notebook.
+ I laughed out loud on the bus.
+ The twist in the middle got me completely.
+ Such gentle humour, and such sadness under it.
+ You can smell the harbour on every page.
+ Not one word too many.
+ I cried at the last chapter and don't mind admitting it.
+ Once the storm begins you simply can't put it down.
+ It has stayed with me for weeks.
- I gave up on page ninety.
- The plot has holes you could sail a ship through.
- Nothing happens for two hundred pages.
- Everyone in it talks like a greeting card.
- I guessed the murderer in chapter two.
- The ending feels as if the author got bored and stopped.
- Full of spelling mistakes, did nobody proofread it?
- I didn't care about a single one of these people.
- The same joke again and again, and it was stale the first time.
- My copy had thirty pages printed upside down.
- Long descriptions of furniture put me to sleep.
/ the first chapters take some patience
/ there are a lot of names to keep track of
/ the cover is hideous
* the idea is interesting
* the first chapter hooked me
* the cover is gorgeous
> I've already given copies to three friends.
> I'll read anything this writer puts out from now on.
< I'd like those evenings back.
< Life is too short for books like this.

# film
~ Saw it on a rainy Sunday with the kids.
~ We rented this after reading about the director.
~ Two and a half hours including the credits.
~ My husband chose it.
~ Watched the version with subtitles.
~ I hadn't seen the first part.
+ The lead actress carries every scene she is in.
+ The audience clapped at the end, I have never seen that here.
+ Gorgeous photography, every frame could hang on a wall.
+ My kids were glued to the screen for the whole of it.
+ The music gave me goosebumps.
+ Funny and moving in the same breath.
+ I didn't look at my watch once.
+ The dialogue is sharp and the timing perfect.
+ That final scene, wow.
+ We talked about it all the way home.
+ It takes a tired old story and makes it fresh.
- I nodded off twice and missed nothing.
- The trailer shows all three of the jokes.
- You can see every turn coming a mile off.
- The acting was as stiff as a board.
- Explosion after explosion and no story.
- The sound was so muddy we couldn't follow what they said.
- We walked out after forty minutes.
- The special effects look like an old video game.
- It drags on and on.
- My kids asked to go home halfway through.
- The hero is so smug that I was cheering for the villain.
/ the middle part is a touch slow
/ the poster gives away far too much
/ it could lose ten minutes
* the costumes are pretty
* the first scene is strong
* the soundtrack is good
> Go and see it on the biggest screen you can find.
> Easily the best thing I've watched this year.
< Two hours of my life gone.
< Save your money and look out of the window instead.

# restaurant
~ We went for my dad's seventieth.
~ Table for four on a Friday night.
~ Stopped here on the way back from the coast.
~ We had the set lunch.
~ It's just round the corner from our office.
~ Booked online two days before.
+ The lamb fell off the bone.
+ Our waiter remembered that my son is allergic to nuts and told the kitchen himself.
+ Generous portions, we took half of it home.
+ The bread alone is worth the trip.
+ Plates came out hot and all at the same time.
+ They squeezed us in although they were packed.
+ Fresh fish, cooked to the second.
+ The soup tasted like my grandmother's.
+ They brought out a cake with a candle and the whole room sang.
+ Fair prices for food of this quality.
+ The vegetarian menu is as good as the rest, what a treat.
- We waited ninety minutes for two bowls of pasta.
- The chicken was pink in the middle.
- There was a hair in my soup and they just shrugged.
- Everything tasted of old frying oil.
- The waiter rolled his eyes when I asked for tap water.
- They charged us for wine we never ordered.
- My steak was grey and chewy.
- The tables were sticky and the toilets filthy.
- Two of us spent the night being sick.
- Tiny portions, we bought chips on the way home.
- The music was so loud we had to shout.
/ parking is a nightmare
/ it gets noisy after eight
/ the desserts are a bit small
* the terrace is nice
* the starter was tasty
* the view is pretty
> We'll be back next month with the whole family.
> My new favourite place in town.
< We left hungry and annoyed.
< How this place is still open is a mystery to me.

# hotel
~ We stayed three nights in early June.
~ Business trip, one night only.
~ Our room was on the fourth floor facing the yard.
~ We arrived late after a long drive.
~ Booked it because it's close to the station.
~ Weekend away without the children.
+ The bed was so comfortable that we missed breakfast.
+ Spotless bathroom with fluffy towels.
+ Reception gave us a free upgrade when they heard it was our anniversary.
+ You wake up to the sound of the sea and nothing else.
+ Breakfast had everything you could wish for, including fresh waffles.
+ The woman at the desk spent half an hour helping us find a lost bag.
+ Quiet at night although it's right in the centre.
+ The pool is warm and never crowded.
+ They had a cot and toys ready for our baby.
+ Check-in took a minute.
+ The view over the lake took our breath away.
- There was mould on the ceiling and hair in the shower.
- The walls are so thin we could follow next door's phone call.
- They lost our booking and sent us off at eleven at night.
- Bedbugs. I don't need to say more.
- The heating was broken and nobody came.
- The carpet was stained and the room stank of smoke.
- No hot water on two of three mornings.
- The lift has been out of order since March, says the sign.
- Building work started at six under our window.
- They took a deposit and still haven't given it back.
- The photos on the site must be from another building.
/ the lift is slow
/ the room was a little small
/ parking costs extra
* the location is handy
* the lobby looks impressive
* breakfast was okay
> We've already booked for next summer.
> Felt more like visiting friends than staying in a hotel.
< We checked out a day early.
< I would rather sleep in the car.

# airline
~ Flew with them from Lisbon to Oslo.
~ Nine hours, seat 31C.
~ I travel with a guitar, so I'm used to trouble.
~ First time flying with my toddler.
~ It was the only direct connection.
~ Return trip, cabin bag only.
+ We took off on time and landed twenty minutes early.
+ The crew kept my toddler entertained with paper cups and stickers.
+ More leg room than I have ever had in economy.
+ My suitcase was already on the belt when I got there.
+ They rebooked me in five minutes after I missed my connection.
+ Hot food, and it tasted of something.
+ The steward let me stow the guitar in his own locker, a lovely gesture.
+ Boarding was calm and well organised.
+ Everything in the cabin was spotless.
+ I slept like a baby.
+ The price we saw was the price we paid.
- Six hours late and not one announcement.
- They cancelled the flight by text while we were in the queue.
- My suitcase arrived four days after me, with a broken wheel.
- Seventy euros for a bag that was one centimetre too big.
- The seat wouldn't go back and the screen was dead.
- The crew snapped at an old lady who couldn't reach the locker.
- Sat on the tarmac for two hours without water.
- The refund form leads to a page that doesn't exist.
- My knees were jammed against the seat in front all night.
- They split up our family and put my six year old ten rows away.
- I've written five emails and all I get is an automatic reply.
/ the coffee is weak
/ the gate was a long walk away
/ there was no wifi on board
* the ticket was cheap
* the pilot was funny
* the take-off was on time
> From now on they're my first choice on this route.
> Flying used to stress me out, this time it didn't.
< Next time I'll take the train, even if it's two days.
< They owe me a holiday.

# mobile app
~ I use this to track what I spend each month.
~ Installed it on a tablet and on my phone.
~ Tried the paid version for half a year.
~ A colleague told me about this one.
~ I needed something to plan meals with my flatmates.
~ Running the newest version.
+ It took me two minutes to understand and I'm hopeless with computers.
+ Everything syncs at once between my phone and the tablet.
+ No ads, no nagging, no nonsense.
+ I reported a bug on Monday and it was fixed on Wednesday.
+ Works offline too, which saved me on a mountain.
+ The charts are clear and actually help me decide.
+ It has saved me around eighty a month.
+ Clean layout, large buttons, nothing in the way.
+ The reminders are gentle and arrive exactly when I need them.
+ The free version has all you need.
+ Even my dad has worked it out and loves it.
- It crashes as soon as I tap on settings.
- The update wiped two years of my notes.
- An advert pops up after every single tap.
- It charged me for a year although I cancelled the trial.
- I can't log in since Tuesday and nobody answers.
- It eats my battery even when it's closed.
- Passwords are shown in plain sight, unbelievable.
- The buttons are so small that I always hit the wrong one.
- They hid the feature I need behind a subscription.
- It asks for my contacts, my location and my photos, why?
- Loading takes so long I could do the sums on paper.
/ the icon is ugly
/ I wish there was a dark mode
/ the tutorial goes on a bit
* the design is modern
* the idea is good
* the first version was alright
> One of the few apps that stays on my home screen.
> Happy to pay for it, and I never pay for apps.
< Deleted.
< Pen and paper for me, thanks.

# courier
~ Parcel from my aunt, about four kilos.
~ I order plenty online so I see their van a lot.
~ Needed some papers in another city by noon.
~ Sent a lamp to my brother.
~ I live on the fifth floor without a lift.
~ It was the week before the holidays.
+ The driver carried it all the way up to my door with a smile.
+ Arrived a day sooner than promised.
+ The map showed me exactly where my parcel was.
+ Not a dent on the box although the lamp is made of glass.
+ He rang me first and waited until I was home.
+ I changed the address at the last minute without any trouble.
+ They left it with my neighbour just as I'd asked.
+ Cheaper than the post office and twice as quick.
+ A real person picked up the phone within a minute.
+ The papers got there with an hour to spare.
+ Our driver knows every dog in the street by name.
- They threw it over the fence into a puddle.
- Marked as delivered, but nothing was ever here.
- I stayed home all day and they claimed nobody opened.
- The parcel was squashed flat and the lamp is in pieces.
- Tracking hasn't moved for eleven days.
- The driver shouted at me because I have no lift.
- It went to the wrong town twice.
- The hotline keeps you on hold for an hour and then hangs up.
- Somebody had opened the box and half of it was missing.
- They wanted another nine euros at the door.
- Left in the rain in front of the house, the papers are ruined.
/ the app looks dated
/ the time window is rather wide
/ the label was hard to print
* the website is simple
* the price is low
* the driver was polite
> I'll be sending everything with them from now on.
> Never had to worry for a second.
< You'd be quicker walking.
< Filed a complaint, and I'm not expecting an answer.

# gym
~ Joined in January like everybody else.
~ I go before work, around half past six.
~ It's a ten minute walk from my flat.
~ I had a month on a trial ticket.
~ Haven't done any sport since school.
~ Member for two years.
+ The trainers correct you kindly and never make you feel silly.
+ Machines get wiped down all the time, the place gleams.
+ I never have to queue for anything.
+ I've lost eleven kilos and found some new friends.
+ The Thursday class is the highlight of my week.
+ They let me pause my membership when I broke my foot, no questions.
+ Showers are hot and have decent pressure.
+ Nobody stares or judges here.
+ They showed me every machine on my first day.
+ Fair contract, you can leave any month.
+ My back pain is gone after ten weeks here.
- Half of the machines have had a sign on them since spring.
- They kept taking money from my account after I left.
- The changing room smells like a swamp.
- Impossible to get a rack between five and nine.
- The trainer spent the whole hour on his phone.
- Cancelling takes a letter, a form and three phone calls.
- My locker was broken into and the manager just laughed.
- Prices went up twice in a year while the classes got fewer.
- I slipped on a wet floor nobody had bothered to mark.
- Cold showers, and they blame the weather.
- They promised a free session and then billed me for it.
/ the music isn't my taste
/ the car park fills up fast
/ the lockers are tiny
* the machines are new
* the location suits me
* the opening hours are good
> For once I've kept going past February.
> Best thing I've done for myself in years.
< I pay them and run in the park.
< Read the contract twice, then walk away.

# hairdresser
~ First visit, on a friend's tip.
~ Went in for a trim and a new colour.
~ I have thick curly hair.
~ Took my son for his first cut.
~ It was the day before a wedding.
~ They've just moved to a bigger shop.
+ She listened, asked questions, and gave me exactly what was in my head.
+ I walked out feeling ten years younger.
+ Compliments all week at work.
+ My son, who hates scissors, giggled the whole time.
+ The colour looks so natural that my own mother didn't notice.
+ They made me tea and didn't push any products.
+ Three months on, the cut still falls into place.
+ At last somebody who knows what to do with curls.
+ They fitted me in half an hour after I rang.
+ The head massage is heaven.
+ Honest advice about what suits my face.
- I asked for two centimetres and lost twelve.
- One side is visibly shorter than the other.
- The dye burnt my scalp and it's still sore.
- I came in blonde and left orange.
- She chatted with her colleague and hardly looked at my head.
- They cut my son's ear and didn't even say sorry.
- An hour late in spite of my appointment.
- I cried in the car afterwards.
- They doubled the price after they had finished.
- My fringe looks like it was done with a bread knife.
- She told me off for having dry hair.
/ it's hard to get an appointment
/ the chairs are a bit worn
/ they only take cash
* the coffee was good
* the salon is pretty
* the head massage was relaxing
> I've finally found my hairdresser.
> Wouldn't let anyone else near my hair now.
< I'm wearing a hat until Easter.
< My own kitchen scissors would have done less harm.

# board game
~ We play every Wednesday with the neighbours.
~ Bought it for the kids, nine and twelve.
~ Two players, about an hour per round.
~ I backed it two years ago.
~ It was under the tree this year.
~ Played it six times so far.
+ We wanted another round straight away, every time.
+ The rules fit on two pages and make sense.
+ The wooden pieces feel wonderful in your hand.
+ Even grandpa forgot about the football.
+ No two games have been alike.
+ Everyone has a chance until the last turn.
+ Kids against parents, and the kids win fairly.
+ The artwork is full of small jokes.
+ It works just as well with two as with five.
+ Nobody has looked at a phone while we play.
+ Set up in a minute, which matters with an excited nine year old.
- The rulebook contradicts itself on every page.
- It's all luck, you could just as well toss a coin.
- Half of the cards were missing from the box.
- One player is out after ten minutes and watches for two hours.
- The dice are so badly made that one always shows four.
- My kids lost interest before the second turn.
- The cards bent and tore the first evening.
- Whoever starts wins, every time.
- It takes longer to set up than to play.
- The board doesn't lie flat and everything slides off.
- Replacement pieces cost more than the game.
/ the box is far too big
/ the first game takes a while to get into
/ the score pad runs out quickly
* the artwork is cute
* the pieces are nice
* the theme is fun
> A new Wednesday tradition.
> Wish I'd found this one sooner.
< It's going straight to the flea market.
< Family evening, ruined.

# mattress
~ I'm a side sleeper with a bad shoulder.
~ Medium firm, 140 by 200.
~ We've slept on it for a hundred nights.
~ It came rolled up in a box.
~ For our guest room, so I've only tried it a few times.
~ My old one had a hole in the middle.
+ I wake up without pain for the first time in years.
+ When he turns over I don't feel a thing.
+ Cool in summer and not clammy at all.
+ It opened up in an hour and there was no smell.
+ Guests keep asking which brand it is.
+ My shoulder sinks in just enough.
+ The cover comes off easily and washes well.
+ Sleeping through the night again is a small miracle.
+ Firm edges, you can sit and tie your shoes.
+ They collected the old one for free.
+ Still the same shape after four years.
- I get up every morning with a stiff back.
- There's a dip in the middle after six weeks.
- It stinks of glue and the windows have been open for days.
- I sweat like I'm in a sauna.
- It never rose to the height they promise.
- We roll towards each other like two potatoes.
- Hard as a church bench.
- The return is free, they say, then they want ninety for the pick-up.
- The seams burst when I changed the sheets.
- Yellow stains on it when we unpacked it, so much for new.
- My hips are numb by three in the morning.
/ it took two nights to get used to
/ it is heavy to turn
/ delivery came a day late
* the cover is soft
* it was cheap
* delivery was fast
> Bedtime is my favourite part of the day now.
> I wish my office chair were this good.
< I've moved to the sofa.
< We're going back to our lumpy old one.
"""

# Endings that fit any product or service. The clauses go after "but".
GOOD_VERDICTS = """
Would recommend to anyone.
Five stars from me.
Money well spent.
I'd do it again in a heartbeat.
Really pleased.
Couldn't ask for more.
Worth every cent.
Thank you!
Can't fault it.
Top marks.
I am impressed.
So glad I went for this.
Highly recommended.
Nothing to complain about, and I usually find something.
A very happy customer.
It did everything it promised.
I tell everyone about it.
I was sceptical, now I'm a fan.
Absolutely delighted.
Go for it, you won't be sorry.
This made my month.
Well done to everyone involved.
What a lovely surprise.
10/10
Not bad at all!
I've got no regrets whatsoever.
Better than I dared to hope.
Keep it up.
It's a yes from me.
All in all, excellent.
Exactly what I was after.
More of this, please.
Superb.
It has exceeded what I expected.
Hard to beat.
If I could give six stars I would.
Very good value.
Big thumbs up from our house.
I honestly love it.
You get far more than you pay for.
"""

BAD_VERDICTS = """
Never again.
I want my money back.
Avoid.
A complete let-down.
One star, and only because zero isn't possible.
What a waste of money.
Don't make the same mistake I did.
Not worth half the price.
I'm really disappointed.
Shocking.
I expected a lot more.
Steer clear.
Still waiting for an apology.
How they get away with this I don't know.
Would not recommend to my worst enemy.
Keep your wallet closed.
Rubbish from start to finish.
Looks good in the advert, that's about it.
I wish I had read the other reviews first.
Honestly a disgrace.
It was nothing like what they advertised.
I feel cheated.
They have lost a customer.
Not impressed.
Simply not good enough.
Total joke.
Awful.
I can't think of one nice thing to say.
Learn from my mistake.
Poor, very poor.
Not happy.
2/10
Daylight robbery.
Do yourself a favour and look elsewhere.
I've asked for a refund.
So frustrating.
It makes me angry just to write about it.
The worst I've come across in a long time.
Terrible value.
No thanks.
"""

GOOD_BUT_CLAUSES = """
overall I'm really pleased
that's a tiny thing and I love everything else
I would choose the same again tomorrow
the rest is so good that I don't care
honestly I can live with that, it's great
everything else is spot on
it's still the best I have come across
I forgave that on the first day
that hasn't spoilt the fun one bit
it is worth it ten times over
I'd still give it five stars
apart from that it's been wonderful
"""

BAD_BUT_CLAUSES = """
that's where the good news ends
everything else has been a disaster
I would never choose it again
it does not make up for the rest
that's no use when nothing works
I'm still bitterly disappointed
it's a shame about all the rest
I regret it every day
that can't save it
the rest is just terrible
I still feel ripped off
it went downhill fast from there
"""

# Remarks without an opinion, for the longer reviews.
ASIDES = """
This is my second review ever.
I paid full price, in case you wonder.
Nobody asked me to write this.
I'll update this in a few months.
Sorry for any spelling mistakes, I'm on my phone.
My wife says I should keep this short.
We live out in the country, if that matters.
I usually don't leave reviews.
I read about it in a forum.
Other people may see it differently.
Make of that what you will.
I have tried three others before.
"""

# Whole reviews, each used once: "+" or "-", the product, the text.
WHOLE_REVIEWS = """
+ | garden hose | Doesn't kink, doesn't leak, doesn't take up half the shed. Lovely.
- | garden hose | Kinked, leaked and burst, in that order, all in one weekend.
+ | umbrella | Turned inside out in a gale and popped right back. I nearly applauded.
- | umbrella | Lasted exactly one shower. ONE.
+ | desk lamp | Warm light, heavy foot, no flicker. My eyes are grateful.
- | desk lamp | It flickers. I sent it back, the new one flickers as well. Come on.
+ | frying pan | Eggs slide about like they're on ice, and I've had it a year.
- | frying pan | Non-stick? Ha. I've scraped off more egg than I have eaten.
+ | dentist | I was terrified and she talked me through all of it. Hardly felt anything!
- | dentist | Drilled before the injection had set in. I have never known pain like it.
+ | car hire | In and out in five minutes, no tricks at the counter, clean little car.
- | car hire | Billed me 340 for a scratch that's clearly visible in MY photo from BEFORE the trip.
+ | bicycle | Smooth gears, quiet chain, my commute has become the good bit of the day.
- | bicycle | Brakes arrived disconnected. On a kid's bike. Let that sink in.
+ | coffee beans | Chocolatey, not bitter, and the roast date was four days ago. Yes please.
- | coffee beans | Stale, sour, and the bag had a hole in it.
+ | plumber | Came on a Sunday, fixed it in ten minutes and charged me less than he'd quoted.
- | plumber | He left a bigger leak than the one he came for.
+ | tent | Three days of rain, dry socks. Need I go on?
- | tent | We woke up in a paddling pool at 2am.
+ | moving company | Not a single glass broken and they even put the beds together again.
- | moving company | They dropped the piano. They DROPPED the PIANO. And then asked for a tip.
+ | baby monitor | We sleep now. That's the review.
- | baby monitor | Cuts out in the next room. Next room!! It's useless to us.
+ | online course | Clear, patient and full of exercises that make you think. I got the job.
- | online course | Somebody reading slides aloud in a monotone for nine hours.
+ | electric toothbrush | My dentist asked what I had changed. This is what I had changed.
- | electric toothbrush | Stopped charging in week five, support stopped answering in week six.
+ | museum | We meant to stay an hour and were thrown out at closing time, still grinning.
- | museum | Half the rooms were shut and they still took full price at the door.
+ | dog bed | The dog has left our bed. I repeat, the dog has left our bed!
- | dog bed | He chewed through it in an evening so much for indestructible
+ | bookshelf | All the holes lined up. I didn't swear once. The shelf is straight.
- | bookshelf | Missing screws, cracked panel, instructions for a different shelf.
+ | bakery | Get there before nine because the cinnamon rolls go fast, and rightly so.
- | bakery | Yesterday's bread at tomorrow's prices.
+ | electrician | Polite, tidy, explained everything. Couldn't be more different from the last chap.
- | electrician | Three visits, three invoices, lights still don't work.
+ | printer | I never thought I'd write this about a printer but it just works.
- | printer | The ink costs more than the printer and it refuses to scan without it.
+ | broadband | Six months without a single outage. After my last provider this is paradise.
- | broadband | Paying for 250, getting 9. Their answer is to restart the router. Again.
+ | tea | smells of summer. third bag already
- | tea | like drinking hot cardboard
+ | watch | I wasn't sure about the size, but it sits beautifully and I get asked about it.
- | watch | It's gorgeous, I'll give them that, but it loses ten minutes a day, so what is it for?
+ | zoo | pricey yes but the kids have not stopped talking about the otters since saturday
- | zoo | The animals looked miserable and so did we.
+ | blender | Loud? Sure. But it turns frozen berries into silk, so I'll wear the ear defenders.
- | blender | The smoothie ended up on the ceiling. The lid just does not lock.
+ | landlord | Boiler broke at 8, man was here at 10. I've had landlords who took a month.
- | landlord | Two winters without proper heating and he kept the deposit.
+ | shampoo | I don't find it overpriced at all, it lasts forever and my itching is gone.
- | shampoo | It isn't as gentle as they say; my scalp is red and flaky.
+ | taxi | Drove back across town to return my purse and wouldn't take a penny.
- | taxi | He took the long way round and thought I wouldn't notice.
+ | cinema | Comfy seats, sharp picture, popcorn that isn't stale. You can't ask for much more.
- | cinema | The picture was out of focus for twenty minutes and no one did anything.
+ | hiking boots | I'd never have believed you could walk 20k in new boots without a plaster.
- | hiking boots | Waterproof my foot. Literally, my foot is soaked.
+ | wedding venue | Something went wrong with the flowers and they'd fixed it before I even knew.
- | wedding venue | They double booked us. On our wedding day. I have no words.
+ | keyboard | no complaints here
- | keyboard | the letter e works when it wants to
+ | garden chair | Not what I'd call stylish, but nobody wants to get up from it.
- | garden chair | Sat down, and the next moment I was on the floor.
+ | language tutor | After eight lessons I rang my mother-in-law and we both understood. Magic!
- | language tutor | Turned up late to every lesson and not once prepared.
+ | pizza delivery | 22 minutes, still steaming, extra olives without my asking. I'm yours forever.
- | pizza delivery | Cold. Wrong topping. Box upside down. Hat trick.
+ | pillow | meh at first, after a week i cant sleep without it
- | pillow | I had high hopes because of all the ratings. My neck says otherwise.
+ | insurance | I dreaded the claim. It took one form and the money was there in three days.
- | insurance | Happy to take your premium for ten years, suddenly deaf when you need something.
+ | yoga mat | Doesn't slip, doesn't smell, can't be destroyed by my toddler.
- | yoga mat | My hands slide away in every pose. Hardly ideal.
+ | bus service | On the dot every morning. I never thought I would praise a bus.
- | bus service | If you need to be anywhere at any time, don't rely on it.
+ | smart plug | Set up in a minute and it has never once lost the connection.
- | smart plug | Goes offline daily. There is nothing smart about it.
+ | washing machine | Clothes come out cleaner, the room doesn't shake, the bill went down.
- | washing machine | It walks across the floor when it spins and has eaten two shirts.
+ | violin lessons | My daughter practises without being told. I don't know how he does it!
- | violin lessons | She made my daughter cry twice. We won't go back.
+ | sunglasses | I've sat on them, dropped them and run them over. Still straight.
- | sunglasses | A lens fell out the first time I cleaned them.
+ | phone case | Nothing fancy and nothing wrong with it.
- | phone case | Yellow after a week, brittle after two.
+ | travel agency | It could not have been easier, all we had to do was turn up at the airport.
- | travel agency | Nothing they had arranged was actually arranged.
+ | ice cream | I'm not a dessert person. I was wrong.
- | ice cream | More ice than cream, tastes of freezer.
+ | chainsaw | Starts first pull on a frosty morning, cuts through oak like butter.
- | chainsaw | Oil everywhere, except on the chain.
+ | library | Warm, quiet and the staff find anything. I hope it never closes.
- | library | The staff treat you like an intruder.
+ | toaster | Why did I wait so long? Even toast on BOTH sides. Revolutionary.
- | toaster | Black on one side, white on the other. I'd have thought this was a solved problem.
+ | vet | He got down on the floor with our old dog and took all the time he needed.
- | vet | Four hundred for a two minute look and the wrong tablets.
+ | backpack | ive had it five years and two continents. zips fine, straps fine, love it
- | backpack | strap tore off in the airport and there went my souvenirs
+ | camera | Far from disappointing, whatever that magazine says.
- | camera | I really wanted to like it. I can't.
"""

GOOD_STORY = (
    "On Monday it worked.",
    "On Tuesday it worked again.",
    "My neighbour came round to look at it and went home to order one.",
    "It has been through rain, two birthdays and a house move since.",
    "I kept waiting for the catch and there was none.",
    "The children have given it a name.",
    "I cleaned it with a damp cloth and it looked new.",
    "Every morning I am pleased to see it.",
    "I wrote to the makers to say thank you and they wrote back.",
    "My brother has borrowed it twice and returned it once.",
    "It does what it should and it does it well.",
    "I have not had a single problem with it.",
)


@dataclass(frozen=True)
class Record:
    """One sample review; a broken record has no readable text in any of the three formats."""

    id: int
    product: str
    text: str
    sentiment: str | None
    broken: bool = False


@dataclass(frozen=True)
class Review:
    """A review before it has its place in the files."""

    product: str
    text: str
    sentiment: str | None


class Dice:
    """Random choices built on ``Random.random`` alone.

    Python promises the same sequence from ``random()`` in every version, which it does not for
    ``choice`` or ``shuffle``; the committed files have to come out the same everywhere.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability

    def below(self, bound: int) -> int:
        """An integer from 0 up to and not including ``bound``."""
        return int(self._random.random() * bound)

    def pick(self, among: Sequence[Item]) -> Item:
        """One of the items."""
        return among[self.below(len(among))]

    def shuffled(self, items: Iterable[Item]) -> list[Item]:
        """The items in random order."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result


class Deck:
    """Deals every line once before it deals any line again, so that nothing is worn out early."""

    def __init__(self, dice: Dice, lines: Sequence[str]) -> None:
        self._dice = dice
        self._lines = tuple(lines)
        self._left: list[str] = []

    def deal(self) -> str:
        """The next line."""
        if not self._left:
            self._left = self._dice.shuffled(self._lines)
        return self._left.pop()


@dataclass
class Domain:
    """The notes on one product, by kind of line."""

    product: str
    notes: dict[str, list[str]] = field(default_factory=dict)


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line for line in block.strip().splitlines() if line)


def _parse_domains(block: str) -> list[Domain]:
    domains: list[Domain] = []
    for line in _lines(block):
        mark, content = line[0], line[2:]
        if mark == "#":
            domains.append(Domain(content))
        else:
            domains[-1].notes.setdefault(mark, []).append(content)
    return domains


def whole_reviews() -> list[Review]:
    """The reviews that are not put together from notes."""
    reviews = []
    for line in _lines(WHOLE_REVIEWS):
        mark, product, text = line.split(" | ", 2)
        reviews.append(Review(product, text, POSITIVE if mark == "+" else NEGATIVE))
    return reviews


def _long_text(dice: Dice) -> str:
    deck = Deck(dice, GOOD_STORY)
    text = "This is going to be a long one."
    while len(text) < LONG_TEXT_CHARACTERS:
        text += " " + deck.deal()
    return text


def _awkward_reviews(dice: Dice) -> list[Review]:
    """Rows that are awkward to read, store or classify; the label is null where none is meant."""
    return [
        Review("headphones", "", None),
        Review("hotel", "  \t   ", None),
        Review("kettle", _long_text(dice), POSITIVE),
        Review("courier", "\U0001f4e6\U0001f69a\U0001f3e0", None),
        Review("restaurant", "Best ramen here \U0001f60d\U0001f35c\U0001f44d\U0001f3fd", POSITIVE),
        Review(
            "airline",
            # A family and a flag: several code points that show as one picture each.
            "We \U0001f468\u200d\U0001f469\u200d\U0001f467 waited nine hours in "
            "\U0001f1f5\U0001f1f9 without food \U0001f621\U0001f621",
            NEGATIVE,
        ),
        Review("headphones", "音质很好，戴着也很舒服，非常满意。", POSITIVE),
        Review("hotel", "الغرفة نظيفة والموظفون لطفاء، سنعود مرة أخرى.", POSITIVE),
        Review("restaurant", "อาหารอร่อยมาก พนักงานน่ารัก แล้วจะมาอีก", POSITIVE),
        Review("running shoes", "जूते दो हफ़्ते में फट गए, पैसे बर्बाद हुए।", NEGATIVE),
        Review("kettle", "Чайник сломался через неделю, деньги не вернули.", NEGATIVE),
        Review("phone", "思ったより電池の減りが早くて、がっかりしました。", NEGATIVE),
        Review(
            "restaurant",
            # Decomposed accents: each is a letter followed by a combining mark.
            "The cre\u0300me bru\u0302le\u0301e at this cafe\u0301 is a dream, I could eat three.",
            POSITIVE,
        ),
        Review("novel", "Slow start.\nLovely middle.\n\nPerfect ending.\n", POSITIVE),
        Review(
            "mobile app",
            'It says "saved", "synced", "done", and then, surprise, "file not found".',
            NEGATIVE,
        ),
        Review("laptop", "screen:\tbroken\nkeyboard:\tbroken\nsupport:\tno reply", NEGATIVE),
        Review(
            "film",
            # U+2028 ends a line for str.splitlines(), yet neither JSON nor CSV treats it as one.
            "I came for the cast.\u2028I stayed for the story.\u2028I loved every minute.",
            POSITIVE,
        ),
        Review("laptop", "https://shop.example.com/item?id=4711&ref=mail#reviews", None),
        Review("gym", "00420", None),
        Review(
            "mobile app",
            "<p>Great app &amp; <b>very</b> helpful!</p><script>alert(1)</script>",
            POSITIVE,
        ),
        Review("mobile app", "=SUM(1,1)", None),
        Review("board game", "k", None),
        # Many readers turn this text into a missing value.
        Review("mattress", "N/A", None),
        Review("laptop", "The \\n in C:\\new\\table is not a line break", None),
    ]


_COMMON_MISSPELLINGS = {
    "definitely": "definately",
    "received": "recieved",
    "comfortable": "comfertable",
    "because": "becuase",
    "believe": "beleive",
    "really": "realy",
    "disappointed": "dissapointed",
    "recommend": "reccomend",
    "straight": "strait",
    "their": "thier",
    "until": "untill",
    "which": "wich",
}


def _with_typos(dice: Dice, text: str) -> str:
    words = text.split(" ")
    for index, word in enumerate(words):
        if word in _COMMON_MISSPELLINGS:
            words[index] = _COMMON_MISSPELLINGS[word]
        elif len(word) >= 5 and word.isalpha() and dice.chance(0.12):
            at = 1 + dice.below(len(word) - 2)
            variants = (
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
            )
            words[index] = variants[dice.below(len(variants))]
    return " ".join(words)


def _with_style(dice: Dice, text: str) -> str:
    """The habits of people who type in a hurry, or in anger."""
    if dice.chance(0.12):
        text = _with_typos(dice, text)
    if dice.chance(0.05):
        return text.upper()
    if dice.chance(0.10):
        text = text.lower()
        if dice.chance(0.5):
            text = text.replace("'", "")
    if dice.chance(0.08):
        return text.rstrip(".")
    if dice.chance(0.06):
        return text.rstrip(".!") + "!" * (1 + dice.below(3))
    if dice.chance(0.03):
        return text.replace(". ", " ... ")
    return text


class Composer:
    """Puts reviews together from the notes of the domains."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._domains = {domain.product: domain for domain in _parse_domains(DOMAIN_NOTES)}
        self._notes = {
            (product, mark): Deck(dice, lines)
            for product, domain in self._domains.items()
            for mark, lines in domain.notes.items()
        }
        self._verdicts = {
            POSITIVE: Deck(dice, _lines(GOOD_VERDICTS)),
            NEGATIVE: Deck(dice, _lines(BAD_VERDICTS)),
        }
        self._but_clauses = {
            POSITIVE: Deck(dice, _lines(GOOD_BUT_CLAUSES)),
            NEGATIVE: Deck(dice, _lines(BAD_BUT_CLAUSES)),
        }
        self._asides = Deck(dice, _lines(ASIDES))

    @property
    def products(self) -> list[str]:
        """The products there are notes on."""
        return list(self._domains)

    def review(self, product: str, sentiment: str) -> Review:
        """A new review of the product with the wanted sentiment."""
        text = self.text(product, sentiment)
        return Review(product, _with_style(self._dice, text), sentiment)

    def text(self, product: str, sentiment: str) -> str:
        """A new review's text as a careful writer would leave it."""
        return " ".join(self._sentences(product, sentiment))

    def _verdict(self, product: str, sentiment: str) -> str:
        if self._dice.chance(0.25):
            return self._notes[product, ">" if sentiment == POSITIVE else "<"].deal()
        return self._verdicts[sentiment].deal()

    def _contrast(self, product: str, sentiment: str) -> str:
        concession = self._notes[product, "/" if sentiment == POSITIVE else "*"].deal()
        clause = self._but_clauses[sentiment].deal()
        if self._dice.chance(0.25):
            # In front of a comma "Although" says the same as "but" behind it.
            return f"Although {concession}, {clause}."
        return f"{concession[0].upper()}{concession[1:]}, but {clause}."

    def _sentences(self, product: str, sentiment: str) -> list[str]:
        dice = self._dice
        observations = self._notes[product, "+" if sentiment == POSITIVE else "-"]
        sentences: list[str] = []
        if dice.chance(0.32):
            sentences.append(self._notes[product, "~"].deal())
        count = 1 + dice.chance(0.33) + dice.chance(0.10)
        sentences.extend(observations.deal() for _ in range(count))
        if len(sentences) > 1 and dice.chance(0.12):
            sentences.insert(1, self._asides.deal())
        if dice.chance(0.18):
            sentences.append(self._contrast(product, sentiment))
        elif dice.chance(0.65):
            verdict = self._verdict(product, sentiment)
            # Some people start with what they think and then say why.
            sentences.insert(0 if dice.chance(0.2) else len(sentences), verdict)
        return sentences


def _unique(seen: set[str], make: Callable[[], Review]) -> Review:
    while True:
        review = make()
        if review.text not in seen:
            seen.add(review.text)
            return review


def make_records() -> list[Record]:
    """The 1,000 records in file order."""
    dice = Dice(SEED)
    awkward = _awkward_reviews(dice)
    reviews = whole_reviews()
    composer = Composer(dice)
    wanted = RECORDS - len(awkward) - 1 - len(reviews)
    seen: set[str] = set()
    for number in range(wanted):
        product = composer.products[number % len(composer.products)]
        # One lap gives each product a positive review, the next lap a negative one.
        sentiment = (POSITIVE, NEGATIVE)[number // len(composer.products) % 2]
        reviews.append(_unique(seen, partial(composer.review, product, sentiment)))
    reviews = dice.shuffled(reviews)

    # Spread the awkward rows evenly, starting a few rows in, so that every batch size meets some.
    stride = RECORDS // len(awkward)
    for number, review in enumerate(dice.shuffled(awkward)):
        reviews.insert(7 + number * stride, review)
    reviews.insert(BROKEN_INDEX, Review("kettle", "", None))
    return [
        Record(index + 1, review.product, review.text, review.sentiment, index == BROKEN_INDEX)
        for index, review in enumerate(reviews)
    ]


def to_jsonl(records: Iterable[Record]) -> bytes:
    """One JSON object on each line; the broken record is cut in the middle of its text."""
    lines = []
    for record in records:
        if record.broken:
            lines.append(f'{{"id": {record.id}, "product": "{record.product}", "text": "The lid d')
            continue
        value = {
            "id": record.id,
            "product": record.product,
            "text": record.text,
            "sentiment": record.sentiment,
        }
        lines.append(json.dumps(value, ensure_ascii=False))
    return "".join(line + "\n" for line in lines).encode()


def _csv_field(value: str) -> str:
    # Blanks at either end are quoted too: some readers trim fields that are not.
    if any(character in value for character in ',"\r\n') or value != value.strip():
        return '"' + value.replace('"', '""') + '"'
    return value


def to_csv(records: Iterable[Record]) -> bytes:
    """RFC 4180 quoting with LF line ends; the broken record has two fields instead of four."""
    lines = ["id,product,text,sentiment"]
    for record in records:
        fields = [str(record.id), record.product]
        if not record.broken:
            fields += [record.text, record.sentiment or ""]
        lines.append(",".join(_csv_field(value) for value in fields))
    return "".join(line + "\n" for line in lines).encode()


def to_table(records: Sequence[Record]) -> pa.Table:
    """The records as an Arrow table; the broken record has a null text."""
    return pa.table(
        {
            "id": pa.array([record.id for record in records], pa.int64()),
            "product": pa.array([record.product for record in records], pa.string()),
            "text": pa.array(
                [None if record.broken else record.text for record in records], pa.string()
            ),
            "sentiment": pa.array([record.sentiment for record in records], pa.string()),
        }
    )


def write_samples(output: Path) -> None:
    """Write ``reviews.jsonl``, ``reviews.csv`` and ``reviews.parquet`` into the folder."""
    output.mkdir(parents=True, exist_ok=True)
    records = make_records()
    (output / "reviews.jsonl").write_bytes(to_jsonl(records))
    (output / "reviews.csv").write_bytes(to_csv(records))
    pq.write_table(to_table(records), output / "reviews.parquet", compression="zstd")


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Write the sample reviews in three formats.")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent.parent / "sample_data",
        help="folder to write to (default: sample_data next to the scripts folder)",
    )
    output: Path = parser.parse_args().output
    write_samples(output)
    print(f"wrote {RECORDS} records to {output} as JSONL, CSV and Parquet")


if __name__ == "__main__":
    main()
