-- Flow control: limits and their buckets, lanes, fair share, kill switches. The laws are `flow limits unique switch sticky` of engines/protocol.py.
--
--   flow          one row per queue that has any of it (queue.gated); its lock makes the queue's receives one after the other, and holds what they share
--   flow_lane     messages that stand and fall together. name: tenant, sticky key, then limit and key of each claim. closed_limit NULL: open
--   flow_share    a tenant's part of a queue (of one worker, where keys are sticky). `nobody`: of the messages that have no lane too
--   flow_ready    the ready messages of a lane: an ownership table like `ready`          flow_message   lane and costs of every message that is not done
--   flow_limit    the numbers in force      flow_bucket  how full it is      flow_hold  places, each of one lease: they go with it, so nothing can leak
--   flow_event    what happened to lanes since the last receive, insert-only             flow_ended     the same for kill switches
--   flow_unique   the last message sent with a unique key    flow_limited, flow_claimed  limits of whole queues, and those that messages in a queue claim
--
-- Events   a send or a settle must not wait for a receive, nor for one another, so it changes no lane, it tells: `ready`, `heads` (rows of flow_ready), `leased`, `messages`
--          come and gone, the cost of the tenant's turns, work done, places given back. The next receive, under the lock, adds them up and puts lanes and shares right
--          (`_flow_gather`). As the law judges after every verb, it looks at the sums after each (`verb`): a lane that was empty in between has opened, a share that had nothing has begun anew.
-- Locks    ownership rows, FIFO lanes, `flow` of one queue, limits by name, then rows of lanes, shares and buckets, which only the holder of `flow` changes
--          (a bucket belongs to its limit). Sends take a key-share lock on the lanes they enter, in the order of their names, against upkeep that drops empty ones.
--          A receive that names several queues takes `flow` of them all, then the limits of them all, before it looks at the first: the next `flow` behind a limit would be out of order.

ALTER TABLE beltline.queue ADD COLUMN gated boolean NOT NULL DEFAULT false;   -- it has a row in `flow`: the only thing a queue without flow control looks at
ALTER TYPE beltline.item ADD ATTRIBUTE flow jsonb;   -- t tenant, s sticky key, c claims [limit, key, cost], k digest of its lane, w cost of a turn, u unique (flow_unique.sql)
ALTER TABLE beltline.worker ADD COLUMN up boolean NOT NULL DEFAULT false, ADD COLUMN queues text[] NOT NULL DEFAULT '{}';

CREATE TABLE beltline.flow(
  queue int PRIMARY KEY, shaped boolean NOT NULL DEFAULT false, sticky boolean NOT NULL DEFAULT false, limited boolean NOT NULL DEFAULT false,
  snoozed bigint NOT NULL DEFAULT 0,
  turn bigint NOT NULL DEFAULT 0, members text[] NOT NULL DEFAULT '{}',
  lent bigint NOT NULL DEFAULT 0,   -- leased by all shares but nobody's
  span bigint NOT NULL DEFAULT 0, work bigint NOT NULL DEFAULT 0, work_before bigint NOT NULL DEFAULT 0,   -- worker time in this window and the one before
  share float8, least int, half bigint, pause float8, tries int,   -- the kill switch (NULL: none), half: of its window
  tripped bigint NOT NULL DEFAULT 0, trying boolean NOT NULL DEFAULT false, succeeded int NOT NULL DEFAULT 0, pauses int NOT NULL DEFAULT 0,
  judged bigint NOT NULL DEFAULT 0, ended bigint NOT NULL DEFAULT 0, failed bigint NOT NULL DEFAULT 0, ended_before bigint NOT NULL DEFAULT 0, failed_before bigint NOT NULL DEFAULT 0);

CREATE TABLE beltline.flow_share(
  n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue int NOT NULL, tenant text COLLATE "C" NOT NULL, owner text COLLATE "C" NOT NULL, nobody boolean NOT NULL,
  tag bigint NOT NULL DEFAULT 0, cost bigint NOT NULL DEFAULT 1000000, place bigint NOT NULL DEFAULT 0, noisy boolean NOT NULL DEFAULT false,
  standing boolean NOT NULL DEFAULT false, leased int NOT NULL DEFAULT 0,
  span bigint NOT NULL DEFAULT 0, work bigint NOT NULL DEFAULT 0, work_before bigint NOT NULL DEFAULT 0, UNIQUE(queue, tenant, owner));
CREATE INDEX flow_share_next ON beltline.flow_share(queue, owner, noisy, place, tenant) WHERE standing AND NOT nobody;
CREATE UNIQUE INDEX flow_share_nobody ON beltline.flow_share(queue) WHERE nobody;
CREATE INDEX flow_share_noisy ON beltline.flow_share(queue) WHERE noisy;

CREATE TABLE beltline.flow_lane(
  n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue int NOT NULL, code bytea NOT NULL, name text[] COLLATE "C" NOT NULL, prio smallint NOT NULL, share int,
  ready int NOT NULL DEFAULT 0, heads int NOT NULL DEFAULT 0, leased int NOT NULL DEFAULT 0, messages int NOT NULL DEFAULT 0, head_rank bigint, head_seq bigint,
  closed_limit text, closed_key text COLLATE "C", closed_until bigint, closed_at bigint,
  UNIQUE(queue, code));
CREATE INDEX flow_lane_next ON beltline.flow_lane(share, head_rank, head_seq) WHERE closed_limit IS NULL AND head_seq IS NOT NULL;
CREATE INDEX flow_lane_due ON beltline.flow_lane(queue, closed_until, closed_at) WHERE closed_limit IS NOT NULL;
CREATE INDEX flow_lane_closed ON beltline.flow_lane(closed_limit, closed_key, queue, closed_at) WHERE closed_limit IS NOT NULL;
CREATE INDEX flow_lane_share ON beltline.flow_lane(share);
CREATE INDEX flow_lane_sticky ON beltline.flow_lane(queue) WHERE name[2] <> '';

CREATE TABLE beltline.flow_ready(
  lane int NOT NULL, rank bigint NOT NULL, seq bigint NOT NULL, since bigint NOT NULL, id uuid NOT NULL, queue int NOT NULL,
  epoch int NOT NULL, failed int NOT NULL, lost int NOT NULL, flags smallint NOT NULL, expires bigint, why text, error text,
  PRIMARY KEY(lane, rank, seq));
CREATE UNIQUE INDEX flow_ready_id ON beltline.flow_ready(id);
CREATE INDEX flow_ready_since ON beltline.flow_ready(queue, since);
CREATE INDEX flow_ready_expires ON beltline.flow_ready(queue, expires) WHERE expires IS NOT NULL;
CREATE TABLE beltline.flow_message(id uuid PRIMARY KEY, queue int NOT NULL, lane int NOT NULL, costs float8[] NOT NULL, flow jsonb NOT NULL);
CREATE TABLE beltline.flow_hold(id uuid NOT NULL, name text NOT NULL, key text COLLATE "C" NOT NULL, PRIMARY KEY(id, name, key));
CREATE INDEX flow_hold_bucket ON beltline.flow_hold(name, key, id);
CREATE TABLE beltline.flow_bucket(name text NOT NULL, key text COLLATE "C" NOT NULL, tat bigint NOT NULL, PRIMARY KEY(name, key));   -- microseconds since 1970: full again
CREATE TABLE beltline.flow_limit(
  name text COLLATE "C" PRIMARY KEY, declared bytea, given bytea,   -- MessagePack of the Limit: what the code says, what an operator has set over it
  interval_us bigint NOT NULL, burst_us bigint NOT NULL, most int);   -- of the one in force; 0: no rate, NULL: no concurrency
CREATE TABLE beltline.flow_limited(queue int NOT NULL, name text NOT NULL, place int NOT NULL, PRIMARY KEY(queue, name));
CREATE INDEX flow_limited_name ON beltline.flow_limited(name);
CREATE TABLE beltline.flow_claimed(name text NOT NULL, queue int NOT NULL, PRIMARY KEY(name, queue));
CREATE INDEX flow_claimed_queue ON beltline.flow_claimed(queue);

CREATE TABLE beltline.flow_event(
  n bigint GENERATED ALWAYS AS IDENTITY, queue int NOT NULL, verb bigint NOT NULL, lane int, ready int NOT NULL DEFAULT 0, heads int NOT NULL DEFAULT 0,
  leased int NOT NULL DEFAULT 0, messages int NOT NULL DEFAULT 0, cost bigint, work bigint, at bigint, name text, key text COLLATE "C", places int);
CREATE INDEX flow_event_queue ON beltline.flow_event(queue, verb);
CREATE TABLE beltline.flow_ended(n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue int NOT NULL, at bigint NOT NULL, ended int NOT NULL, failed int NOT NULL);
CREATE INDEX flow_ended_queue ON beltline.flow_ended(queue, n);
-- middle, tail: the envelope behind its headers up to dedup and expiry, and behind timeout and retry: what stays when another message is put into its place.
CREATE TABLE beltline.flow_unique(queue int NOT NULL, key text COLLATE "C" NOT NULL, id uuid NOT NULL, middle bytea NOT NULL, tail bytea NOT NULL, PRIMARY KEY(queue, key));
CREATE INDEX flow_unique_id ON beltline.flow_unique(id);

DO $$ DECLARE t text; BEGIN
  FOREACH t IN ARRAY ARRAY['flow', 'flow_share', 'flow_lane', 'flow_ready', 'flow_message', 'flow_hold', 'flow_bucket', 'flow_event', 'flow_ended'] LOOP
    EXECUTE format('ALTER TABLE beltline.%I SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0)', t);
  END LOOP;
  -- Room for the next version of a row on its own page: most updates of these change no indexed column.
  FOREACH t IN ARRAY ARRAY['flow', 'flow_share', 'flow_lane', 'flow_bucket'] LOOP
    EXECUTE format('ALTER TABLE beltline.%I SET (fillfactor = 60)', t);
  END LOOP;
END $$;

-- These have more parameters now, all with a default, so that a process of the version before goes on calling them; the files behind this one create them.
DO $$ DECLARE f regprocedure; BEGIN
  FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'beltline.meta'::regclass)
      AND proname IN ('_items', 'send', 'settle', 'declare', 'beat', 'put_queues', 'put_gathers', 'put_messages') LOOP
    EXECUTE 'DROP FUNCTION ' || f;
  END LOOP;
END $$;
