"""Hostile clients of the server, and hostile servers for downloads, each as a target."""

from __future__ import annotations

from campaigns import client_framing, client_requests, store_troubles
from campaigns.cases import Campaign
from campaigns.client_cases import ClientTarget
from campaigns.store_cases import StoreTarget

TABLES = 2**29  # bytes: 256 MB of tables of constraints, and what making them leaves in the heap
CLIENTS = [
    ClientTarget("half requests: every byte of one", client_framing.half_completion),
    ClientTarget("half requests: others", client_framing.half_others),
    ClientTarget("slow clients: writers", client_framing.slow_writer),
    ClientTarget("slow clients: readers", client_framing.slow_reader),
    ClientTarget("smuggled requests", client_framing.smuggler),
    ClientTarget("pipelines", client_framing.pipeline),
    ClientTarget("connections that go on", client_framing.resender),
    ClientTarget("vanishing clients", client_framing.vanish),
    ClientTarget("changed requests: any byte", client_requests.mutant),
    ClientTarget("changed requests: values", client_requests.liar),
    ClientTarget("large and deep bodies", client_requests.glutton, growth=TABLES),
    ClientTarget("headers", client_requests.header_stuffer),
    ClientTarget("methods and targets", client_requests.wanderer),
    ClientTarget("guessed keys", client_requests.burglar),
    ClientTarget("foreign origins and hosts", client_requests.stranger),
    ClientTarget("upgrades", client_requests.upgrader),
    ClientTarget("crowds: as many as the system lets", client_requests.crowd, 30.0, crowds=True),
    ClientTarget("crowds: more than descriptors", client_requests.crowd_beyond, 30.0, crowds=True),
    ClientTarget("crowds: large bodies", client_requests.hoarder, crowds=True),
]
DOWNLOADS = [
    StoreTarget("downloads cut short: every byte", store_troubles.every_cut),
    StoreTarget("downloads cut short: weights", store_troubles.large_cut),
    StoreTarget("wrong lengths", store_troubles.wrong_length),
    StoreTarget("ranges that lie", store_troubles.lying_range),
    StoreTarget("files that change", store_troubles.changing_file),
    StoreTarget("strange ETags", store_troubles.strange_etag),
    StoreTarget("redirects", store_troubles.redirect),
    StoreTarget("strange heads", store_troubles.strange_head),
    StoreTarget("other pages", store_troubles.other_page),
    StoreTarget("compressed answers", store_troubles.encoded),
    StoreTarget("drips and silence", store_troubles.drip),
    StoreTarget("failing servers", store_troubles.failing),
    StoreTarget("wrong bytes", store_troubles.wrong_bytes),
    StoreTarget("descriptions", store_troubles.description),
]
CAMPAIGN: Campaign[ClientTarget | StoreTarget] = Campaign(
    [*CLIENTS, *DOWNLOADS], full=350, chunk=350
)
