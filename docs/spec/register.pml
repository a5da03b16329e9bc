/*
 * One register of objmeta: rounds, fast reads, erasure by the ballot floor, first writes by the zero ballot, and a
 * change of members, as docs/protocol.md says.  README.md in this directory says what was checked and how to run it.
 *
 * How to read it.  The system is one set of guarded steps (at the end of the file); a step is indivisible, and any
 * enabled step may be next.
 *
 *   Messages   only ever add up: an acceptor may take any message that was sent, at any time, or never, and what it
 *              answered may be used at any later time, or never.  So loss, delay, reordering and duplicates need no
 *              step of their own, and a proposer or coordinator that stops for ever is one whose steps are not taken.
 *   Proposals  are numbered 1, 2, ... in the order of their ballots; 0 is "nothing".  A ballot belongs to one round,
 *              and rounds know nothing of one another, so any number of proposers is covered.
 *   Values     carry the number of the proposal that made them, and prev[], the value they were built on.
 *   Acceptors  are 0 (A), 1 (B), ...; sets of them are bit masks.
 *
 * What must hold (assertions in chosen() and answered()):
 *   - chosen values form one chain: each is built on its predecessor, or on the absence that an erased tombstone left,
 *     and becomes the head once (agreement; nothing lost; nothing deleted comes back without a new write);
 *   - every read, fast or by a round, returns what was the head at some moment between its first step and its answer.
 * A value is chosen, and its write takes effect, when a quorum has accepted it under one ballot (and see adopt()).
 */

/* -- Bounds: set by check.sh --------------------------------------------------------------------------------------- */

#ifndef BALLOTS
#define BALLOTS 3               /* ordinary rounds, each free to read, write or delete, in any epoch */
#endif
#define OLD 7                   /* the members at first: {A,B,C} */
#ifndef NEW
#define NEW OLD                 /* the members after the change; the same set means that nothing changes */
#endif
#ifndef ACCEPTORS
#define ACCEPTORS 3             /* how many acceptors OLD and NEW name together */
#endif
#define HOME 0                  /* home of the register before the change */
#define JOINT_HOME 2            /* under joint, where it must not be used */
#ifndef NEW_HOME
#define NEW_HOME 3              /* after the change */
#endif
/* Parts that can be left out: NO_ERASURE, NO_FAST_READ; and added: FIRST_WRITES.  BROKEN_... are the broken variants. */

#ifdef FIRST_WRITES
#define ZEROS 2                 /* proposals 1 and 2 are zero ballots */
#else
#define ZEROS 0
#endif
#if defined(BROKEN_BALLOT_REUSED)
#define LAST (ZEROS + BALLOTS + 1)
#else
#define LAST (ZEROS + BALLOTS)
#endif
#define SLOTS (LAST + 1)

/* The order of ballots.  Two broken variants let proposals 1 and 2 share one. */
#if defined(BROKEN_BALLOT_REUSED) || defined(BROKEN_ZERO_BEFORE_INSERT)
#define BALLOT(p) ((p) > 1 -> (p) - 1 : (p))
#else
#define BALLOT(p) (p)
#endif

/* -- Quorums: a majority of every member set in force, for both phases --------------------------------------------- */

#define BIT(n) (1 << (n))
#define COUNT(s) (((s) & 1) + (((s) >> 1) & 1) + (((s) >> 2) & 1) + (((s) >> 3) & 1) + (((s) >> 4) & 1))
#define MAJORITY(set, s) (COUNT((s) & (set)) * 2 > COUNT(set))

#define SETTLED_OLD 1           /* the epochs: old -> joint -> new */
#define JOINT 2
#define SETTLED_NEW 3
#define MEMBERS(e) ((e) == SETTLED_OLD -> OLD : ((e) == JOINT -> (OLD | NEW) : NEW))
#define QUORUM(e, s) (((e) == SETTLED_NEW || MAJORITY(OLD, s)) && ((e) == SETTLED_OLD || MAJORITY(NEW, s)))

#ifdef BROKEN_SHORT_QUORUM
#define ACCEPT_QUORUM(e, s) (COUNT((s) & MEMBERS(e)) * 2 > COUNT(MEMBERS(e)) - 2)
#else
#define ACCEPT_QUORUM(e, s) QUORUM(e, s)
#endif
#ifdef BROKEN_FAST_READ_ONE_MAJORITY
#define FAST_READ_QUORUM(e, s) (((e) != SETTLED_NEW && MAJORITY(OLD, s)) || ((e) != SETTLED_OLD && MAJORITY(NEW, s)))
#else
#define FAST_READ_QUORUM(e, s) QUORUM(e, s)
#endif

/* -- What acceptors keep (durable: a step is on disk before its answer leaves, rule 2) ------------------------------ */

byte promised[ACCEPTORS];       /* the row; promised = accepted = 0 is "no row" */
byte accepted[ACCEPTORS];
byte floor[ACCEPTORS];          /* the ballot floor */
byte epoch[ACCEPTORS];
byte joined;                    /* the acceptors that may vote */

/* -- What was sent ------------------------------------------------------------------------------------------------- */

byte in_epoch[SLOTS];           /* the epoch whose configuration a round uses throughout, 0: not begun */
byte heard[(LAST + 2) * (LAST + 1) / 2];
#define HEARD(p, m) heard[(p) * ((p) - 1) / 2 + (m)]            /* who promised p and reported m < p as accepted */
byte value[SLOTS];              /* the value of the accept under p, 0: none was sent */
byte voted[SLOTS];              /* who has ever accepted p */
byte over;                      /* rounds past phase one: they take no promises any more */

byte published = SETTLED_OLD;   /* the ~config register, itself replicated under the same rules: here one step each */
byte inventoried;               /* who answered the coordinator's inventory */
bool listed;                    /* somebody named the register in it */
bool copied;                    /* an identity round on the register was completed under joint */

byte fast_epoch;                /* the fast read in flight: its epoch, 0: none */
byte fast_ballot;               /* the accepted ballot it will find agreed */
byte fast_agreed;               /* who answered that; what others answered is of no use to it */

/* -- For the assertions only --------------------------------------------------------------------------------------- */

byte prev[SLOTS];               /* of a value: the value it was built on */
byte tombs;                     /* values that are tombstones */
byte head;                      /* the value chosen last */
byte was_head = 1;              /* values that are or were the head */
byte top;                       /* the greatest ballot chosen */
byte arrived;                   /* acceptors in the new epoch */
hidden byte i, k;               /* counters within a step, not part of a state */
byte window[SLOTS];             /* of a round in phase one: heads since its first promise */
byte fast_window;               /* of the fast read: heads since its first answer */

#define ABSENT (BIT(0) | tombs)                                 /* values that mean "no such object" */
#define IS_ABSENT(v) ((BIT(v) & ABSENT) != 0)

/* A read that began when `since` began to be collected may answer v. */
inline answered(v, since) {
    assert((BIT(v) & since) || (IS_ABSENT(v) && (since & ABSENT)))
}

/* A quorum has accepted v under p.  Below a ballot chosen before, that can only be part of the history. */
inline chosen(p, v) {
    if
    :: p < top -> assert(was_head & BIT(v))
    :: else ->
        top = p;
        if
        :: v != head ->
            assert(!(was_head & BIT(v)));
            assert(prev[v] == head || (prev[v] == 0 && IS_ABSENT(head)));
            head = v;
            was_head = was_head | BIT(v);
            i = 1;
            do
            :: i <= LAST -> if :: window[i] -> window[i] = window[i] | BIT(v) :: else fi; i++
            :: else -> break
            od;
            i = 0;
            if :: fast_window -> fast_window = fast_window | BIT(v) :: else fi
        :: else
        fi
    fi
}

/* -- Acceptors ------------------------------------------------------------------------------------------------------ */

/* Every request carries its epoch; the greatest seen is durable before the answer, smaller ones are refused. */
#ifdef BROKEN_NO_FENCE
#define SPEAKS(a, e) ((MEMBERS(e) & BIT(a)) && (joined & BIT(a)) && (e) <= epoch[a])
#else
#define SPEAKS(a, e) ((MEMBERS(e) & BIT(a)) && (joined & BIT(a)) && (e) == epoch[a])
#endif

#define BEGINS_OR(was, a) ((was) -> (was) : epoch[a])

/* Rule 2, strictly: no ballot can collect two prepare quorums. */
#define MAY_PROMISE(a, p) (!(over & BIT(p)) && SPEAKS(a, BEGINS_OR(in_epoch[p], a)) && \
    BALLOT(p) > BALLOT(promised[a]) && BALLOT(p) > BALLOT(accepted[a]) && BALLOT(p) > BALLOT(floor[a]))

inline promise(a, p) {
    printf("prepare %d: %c promises, reports %d\n", p, 65 + a, accepted[a]);
    in_epoch[p] = BEGINS_OR(in_epoch[p], a);
    promised[a] = p;
    HEARD(p, accepted[a]) = HEARD(p, accepted[a]) | BIT(a);
    if :: !window[p] -> window[p] = BIT(head) :: else fi
}

/* Rule 2.  A duplicate changes nothing and its answer is in voted[] already. */
#define MAY_ACCEPT(a, p) (value[p] && SPEAKS(a, in_epoch[p]) && \
    BALLOT(p) >= BALLOT(promised[a]) && BALLOT(p) > BALLOT(accepted[a]) && BALLOT(p) > BALLOT(floor[a]))

inline accept(a, p) {
    printf("accept %d: %c takes value %d\n", p, 65 + a, value[p]);
    promised[a] = p;
    accepted[a] = p;
    voted[p] = voted[p] | BIT(a);
    if
    :: ACCEPT_QUORUM(in_epoch[p], voted[p]) ->
        chosen(p, value[p]);
        if
        :: published == JOINT && in_epoch[p] == JOINT && value[p] != p -> copied = true     /* it wrote back */
        :: else
        fi
    :: else
    fi
}

/*
 * A proposal made under joint that reached a majority of the new members, though no joint quorum, is chosen once that
 * majority is in the new epoch: from then on it is all that rounds there can find.
 */
#define MAY_ADOPT(a) (epoch[a] < published && (joined & BIT(a)) && (MEMBERS(epoch[a] + 1) & BIT(a)))

inline adopt(a) {
    epoch[a]++;
    printf("epoch: %c adopts %d\n", 65 + a, epoch[a]);
    if
    :: epoch[a] == SETTLED_NEW ->
        arrived = arrived | BIT(a);
        k = 1;
        do
        :: k <= LAST -> if :: MAJORITY(NEW, voted[k] & arrived) -> chosen(k, value[k]) :: else fi; k++
        :: else -> break
        od;
        k = 0
    :: else
    fi
}

/* Rules 8 and 9.  The message exists once ALL acceptors of a configuration in force alone confirmed the tombstone. */
#if defined(BROKEN_ERASE_CONFIRMED_BY_QUORUM)
#define CONFIRMED(p) QUORUM(in_epoch[p], voted[p])
#else
#define CONFIRMED(p) ((voted[p] & MEMBERS(in_epoch[p])) == MEMBERS(in_epoch[p]))
#endif
#if defined(BROKEN_ERASE_STALE_CONFIGURATION)
#define ERASE_SPEAKS(a, e) (MEMBERS(e) & BIT(a))
#else
#define ERASE_SPEAKS(a, e) (SPEAKS(a, e) && (e) != JOINT)
#endif
#ifdef BROKEN_ERASE_PROMISED
#define UNPROMISED(a, p) true
#else
#define UNPROMISED(a, p) (BALLOT(promised[a]) <= BALLOT(p))
#endif
#ifdef BROKEN_ERASE_BY_VALUE
#define HOLDS_TOMBSTONE(a, p) (value[accepted[a]] == value[p] && promised[a] == accepted[a])
#else
#define HOLDS_TOMBSTONE(a, p) (accepted[a] == p && UNPROMISED(a, p))
#endif
#define MAY_ERASE(a, p) (value[p] && (tombs & BIT(value[p])) && CONFIRMED(p) && ERASE_SPEAKS(a, in_epoch[p]) && \
    HOLDS_TOMBSTONE(a, p))

inline erase(a, p) {
    printf("erase %d: at %c\n", p, 65 + a);
    promised[a] = 0;
    accepted[a] = 0;
#ifndef BROKEN_ERASE_WITHOUT_FLOOR
    if :: floor[a] < p -> floor[a] = p :: else fi
#endif
}

/* Rule 4: one of the agreeing answers to the fast read in flight; the first of them begins the read. */
#define MAY_ANSWER(a) (!(fast_agreed & BIT(a)) && SPEAKS(a, BEGINS_OR(fast_epoch, a)) && \
    (!fast_agreed || accepted[a] == fast_ballot))

inline answer_fast(a) {
    printf("fast read: %c answers %d\n", 65 + a, accepted[a]);
    fast_epoch = BEGINS_OR(fast_epoch, a);
    fast_ballot = accepted[a];
    fast_agreed = fast_agreed | BIT(a);
    if :: !fast_window -> fast_window = BIT(head) :: else fi
}

#define MAY_FINISH_FAST (fast_agreed && FAST_READ_QUORUM(fast_epoch, fast_agreed))

inline finish_fast() {
    printf("fast read: answers value %d\n", value[fast_ballot]);
    answered(value[fast_ballot], fast_window);
    fast_epoch = 0;
    fast_ballot = 0;
    fast_agreed = 0;
    fast_window = 0
}

/* First writes.  Proposal p is the zero ballot of epoch ZERO_EPOCH(p), and used by ZERO_HOME(p) alone. */
#if defined(BROKEN_ZERO_BEFORE_INSERT)
#define ZERO_EPOCH(p) SETTLED_OLD
#elif defined(BROKEN_ZERO_UNDER_JOINT)
#define ZERO_EPOCH(p) ((p) == 1 -> SETTLED_OLD : JOINT)
#elif defined(BROKEN_ZERO_HOME_BEFORE_EPOCH)
#define ZERO_EPOCH(p) ((p) == 1 -> SETTLED_NEW : SETTLED_OLD)
#else
#define ZERO_EPOCH(p) ((p) == 1 -> SETTLED_OLD : SETTLED_NEW)
#endif
#define ZERO_HOME(p) (ZERO_EPOCH(p) == SETTLED_OLD -> HOME : (ZERO_EPOCH(p) == JOINT -> JOINT_HOME : NEW_HOME))

/* The home's acceptor takes it as an accept like any other, durably, BEFORE it is sent to anybody else. */
#define MAY_INSERT(a, p) ((a) == ZERO_HOME(p) && SPEAKS(a, ZERO_EPOCH(p)) && \
    promised[a] == 0 && accepted[a] == 0 && floor[a] == 0)

inline insert(a, p) {
    assert(value[p] == 0);      /* a zero ballot is used once: what the home's acceptor keeps sees to it */
    printf("zero ballot %d: home %c inserts\n", p, 65 + a);
    in_epoch[p] = ZERO_EPOCH(p);
    value[p] = p;
    over = over | BIT(p);
    accept(a, p)
}

/* -- One round (one ballot, one value: rule 1) ---------------------------------------------------------------------- */

#define AGREED(p, m) ((m) < (p) && (p) > ZEROS && in_epoch[p] && !(over & BIT(p)) && QUORUM(in_epoch[p], HEARD(p, m)))

inline finish(p) {
    over = over | BIT(p);
    window[p] = 0;
    i = 0;
    do
    :: i < p -> HEARD(p, i) = 0; i++
    :: else -> break
    od;
    i = 0
}

/*
 * Found by this model: it is not enough for the copy step that a joint quorum agrees on a zero ballot.  The new home may
 * not be among them, would find nothing at its own acceptor, and use a zero ballot of the new epoch, which is greater.  So
 * in the copy step a base under a zero ballot is written back under the round's own ballot, agreed on or not.
 */
#define IS_ZERO(m) ((m) >= 1 && (m) <= ZEROS)
#ifdef BROKEN_COPY_LEAVES_ZERO_BALLOT
#define COPIES(m) true
#else
#define COPIES(m) (!IS_ZERO(m))
#endif

/* Rules 3 and 7.  Only a base that a quorum reported under one ballot is answered, or built on ... */
inline keep(p, m) {
    printf("round %d: answers value %d\n", p, value[m]);
    answered(value[m], window[p]);
    if :: published == JOINT && in_epoch[p] == JOINT && COPIES(m) -> copied = true :: else fi;
    finish(p)
}

inline propose(p, m, tomb) {
    printf("round %d: proposes %d on value %d, tombstone %d\n", p, p, value[m], tomb);
    value[p] = p;
    prev[p] = value[m];
#ifdef BROKEN_PROMISE_KEPT_ACROSS_CHANGE
    in_epoch[p] = published;
#endif
    if :: tomb -> tombs = tombs | BIT(p) :: else fi;
    finish(p)
}

/* ... any other is written back unchanged under this ballot, and that ends the round. */
inline write_back(p, m) {
    printf("round %d: writes back value %d\n", p, value[m]);
    value[p] = value[m];
    finish(p)
}

/* A quorum reported m or less, not all of them the same: what a round may have when it tires of waiting (rule 7). */
#define BELOW(p, m) ( \
    ((m) > 0 -> HEARD(p, 0) : 0) | ((m) > 1 -> HEARD(p, 1) : 0) | ((m) > 2 -> HEARD(p, 2) : 0) | \
    ((m) > 3 -> HEARD(p, 3) : 0) | ((m) > 4 -> HEARD(p, 4) : 0))
#define UNSETTLED(p, m) ((m) < (p) && (p) > ZEROS && in_epoch[p] && !(over & BIT(p)) && HEARD(p, m) && BELOW(p, m) && \
    QUORUM(in_epoch[p], HEARD(p, m) | BELOW(p, m)))

/* -- The change of members ------------------------------------------------------------------------------------------ */

/* The list is asked for under the joint epoch, so that asking fences; promise-only rows are rows. */
#ifdef BROKEN_LIST_BEFORE_FENCE
#define FENCED(a) (published != SETTLED_NEW)
#else
#define FENCED(a) (published == JOINT && epoch[a] == JOINT)
#endif
#ifdef BROKEN_LIST_ACCEPTED_ONLY
#define HAS_ROW(a) (accepted[a] != 0)
#else
#define HAS_ROW(a) (promised[a] != 0 || accepted[a] != 0)
#endif
#define MAY_LIST(a) ((OLD & BIT(a)) && !(inventoried & BIT(a)) && FENCED(a))

inline list(a) {
    printf("inventory: %c answers, row %d\n", 65 + a, HAS_ROW(a));
    inventoried = inventoried | BIT(a);
    listed = listed || HAS_ROW(a)
}

/* Every listed register completes an identity round under joint before the new members take over.  Whoever takes over
   from a crashed coordinator begins again from what is published; that is this coordinator, later. */
#ifdef BROKEN_NO_COPY
#define COPIED true
#else
#define COPIED (!listed || copied)
#endif
#define MAY_PUBLISH_NEW (published == JOINT && MAJORITY(OLD, inventoried) && COPIED)

inline publish_new() {
    printf("publish: new\n");
    published = SETTLED_NEW;
    inventoried = 0;
    listed = false;
    copied = false
}

/* A joining acceptor takes the greatest ballot floor of a fenced majority (x and y) of the old, and votes only then. */
#define MAY_JOIN(a, x, y) (published != SETTLED_OLD && !(joined & BIT(a)) && \
    x < y && MAJORITY(OLD, BIT(x) | BIT(y)) && epoch[x] >= JOINT && epoch[y] >= JOINT)

inline join(a, x, y) {
    printf("join: %c asks %c and %c\n", 65 + a, 65 + x, 65 + y);
#ifndef BROKEN_JOIN_WITHOUT_FLOORS
    floor[a] = (floor[x] > floor[y] -> floor[x] : floor[y]);
#endif
#ifdef BROKEN_RAW_COPY
    accepted[a] = (accepted[x] > accepted[y] -> accepted[x] : accepted[y]);
    promised[a] = accepted[a];
    voted[accepted[a]] = voted[accepted[a]] | BIT(a);
    copied = true;
#endif
    joined = joined | BIT(a);
    epoch[a] = JOINT
}

/* -- The system: any of these steps, in any order ------------------------------------------------------------------- */

#define UP_TO_2(STEP, x) STEP(x, 1) STEP(x, 2)
#if LAST == 2
#define EACH(STEP, x) UP_TO_2(STEP, x)
#elif LAST == 3
#define EACH(STEP, x) UP_TO_2(STEP, x) STEP(x, 3)
#elif LAST == 4
#define EACH(STEP, x) UP_TO_2(STEP, x) STEP(x, 3) STEP(x, 4)
#else
#define EACH(STEP, x) UP_TO_2(STEP, x) STEP(x, 3) STEP(x, 4) STEP(x, 5)
#endif

#define PREPARE(a, p) :: d_step { (p) > ZEROS && MAY_PROMISE(a, p) -> promise(a, p) }
#define ACCEPT(a, p) :: d_step { MAY_ACCEPT(a, p) -> accept(a, p) }
#define ERASE(a, p) :: d_step { MAY_ERASE(a, p) -> erase(a, p) }
#define ANSWER(a) :: d_step { MAY_ANSWER(a) -> answer_fast(a) }
#define INSERT(a, p) :: d_step { MAY_INSERT(a, p) -> insert(a, p) }
#define ADOPT(a) :: d_step { MAY_ADOPT(a) -> adopt(a) }
#define LIST(a) :: d_step { MAY_LIST(a) -> list(a) }
#define JOIN(a, x, y) :: d_step { MAY_JOIN(a, x, y) -> join(a, x, y) }

#define KEEP(p, m) :: d_step { AGREED(p, m) -> keep(p, m) }
#define WRITE(p, m) :: d_step { AGREED(p, m) -> propose(p, m, false) }
#ifdef NO_ERASURE
#define DELETE(p, m)            /* without erasure a tombstone is a value like any other */
#else
#define DELETE(p, m) :: d_step { AGREED(p, m) -> propose(p, m, true) }
#endif
#define COPY(p, m) :: d_step { IS_ZERO(m) && AGREED(p, m) && in_epoch[p] == JOINT -> write_back(p, m) }
#define WRITE_BACK(p, m) :: d_step { UNSETTLED(p, m) -> write_back(p, m) }
#define KEEP_UNSETTLED(p, m) :: d_step { UNSETTLED(p, m) -> keep(p, m) }
#define WRITE_UNSETTLED(p, m) :: d_step { UNSETTLED(p, m) -> propose(p, m, false) }

#define ROUND(p) \
    KEEP(p, 0) WRITE(p, 0) DELETE(p, 0) EACH(KEEP, p) EACH(WRITE, p) EACH(DELETE, p) EACH(WRITE_BACK, p) COPY(p, 1) COPY(p, 2)
#define JOINER(a) JOIN(a, 0, 1) JOIN(a, 0, 2) JOIN(a, 1, 2)

#if ACCEPTORS == 3
#define EACH_ACCEPTOR(STEPS) STEPS(0) STEPS(1) STEPS(2)
#elif ACCEPTORS == 4
#define EACH_ACCEPTOR(STEPS) STEPS(0) STEPS(1) STEPS(2) STEPS(3)
#else
#define EACH_ACCEPTOR(STEPS) STEPS(0) STEPS(1) STEPS(2) STEPS(3) STEPS(4)
#endif

#define PREPARES(a) EACH(PREPARE, a)
#define ACCEPTS(a) EACH(ACCEPT, a)
#define ERASES(a) EACH(ERASE, a)
#define INSERTS(a) INSERT(a, 1) INSERT(a, 2)

init {
    d_step {
        joined = OLD;
        i = 0;
        do
        :: i < ACCEPTORS -> epoch[i] = SETTLED_OLD; i++
        :: else -> break
        od;
        i = 0
    }
end:
    do
    EACH_ACCEPTOR(PREPARES)
    EACH_ACCEPTOR(ACCEPTS)
    ROUND(1) ROUND(2)
#if LAST >= 3
    ROUND(3)
#endif
#if LAST >= 4
    ROUND(4)
#endif
#if LAST >= 5
    ROUND(5)
#endif

#ifndef NO_ERASURE
    EACH_ACCEPTOR(ERASES)
#endif

#ifndef NO_FAST_READ
    EACH_ACCEPTOR(ANSWER)
    :: d_step { MAY_FINISH_FAST -> finish_fast() }
#endif

#ifdef FIRST_WRITES
#ifdef BROKEN_ZERO_BEFORE_INSERT
    /* The home sends its zero ballot before it has inserted it, and after a restart another value under the same. */
    :: d_step { value[1] == 0 -> in_epoch[1] = SETTLED_OLD; value[1] = 1; over = over | BIT(1) }
    :: d_step { value[1] != 0 && value[2] == 0 -> in_epoch[2] = SETTLED_OLD; value[2] = 2; over = over | BIT(2) }
#else
    EACH_ACCEPTOR(INSERTS)
#endif
#endif

#if NEW != OLD
    EACH_ACCEPTOR(ADOPT)
    :: d_step { published == SETTLED_OLD -> printf("publish: joint\n"); published = JOINT }
    LIST(0) LIST(1) LIST(2)
    :: d_step { MAY_PUBLISH_NEW -> publish_new() }
    JOINER(3)
#if ACCEPTORS > 4
    JOINER(4)
#endif
#endif

#ifdef BROKEN_BALLOT_REUSED
    /* Round 1 proposes a second value under its ballot, on the base it had before. */
    :: d_step {
        value[1] == 1 && value[2] == 0 && in_epoch[2] == 0 ->
        printf("round 1: proposes 2 as well\n");
        in_epoch[2] = in_epoch[1];
        value[2] = 2;
        prev[2] = prev[1];
        over = over | BIT(2)
    }
#endif
#ifdef BROKEN_PROMISE_NOT_DURABLE
    :: d_step { promised[0] > accepted[0] -> printf("A restarts\n"); promised[0] = accepted[0] }
    :: d_step { promised[1] > accepted[1] -> printf("B restarts\n"); promised[1] = accepted[1] }
#endif
#ifdef BROKEN_WIPED_UNDER_OLD_NAME
    :: d_step { promised[0] -> printf("A is wiped\n"); promised[0] = 0; accepted[0] = 0; floor[0] = 0 }
#endif
#ifdef BROKEN_READ_NOT_WRITTEN_BACK
    EACH(KEEP_UNSETTLED, LAST)
#endif
#ifdef BROKEN_BASE_NOT_SETTLED
    EACH(WRITE_UNSETTLED, LAST)
#endif
    od
}
