/* Live updates, countdowns and dialogs. Every page reads and acts without it, too. */
(function () {
    "use strict";

    var root = document.querySelector(".smq");
    var part = root.querySelector("[data-events]");
    var dialog = document.getElementById("smq-dialog");
    var ahead = Date.now() / 1000 - parseFloat(root.dataset.now); // how far this clock is before the server's

    // --- times -------------------------------------------------------------------------------------------------------

    function span(seconds) {
        var s = Math.abs(seconds), rest = Math.round(s), parts = [];
        if (s < 10) {
            return s.toFixed(1) + " s";
        }
        [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]].forEach(function (unit) {
            if (rest >= unit[1]) {
                parts.push(Math.floor(rest / unit[1]) + " " + unit[0]);
                rest %= unit[1];
            }
        });
        return parts.slice(0, 2).join(" ");
    }

    function tick() {
        var now = Date.now() / 1000 - ahead;
        if (document.hidden) {
            return;
        }
        root.querySelectorAll("time[data-until]").forEach(function (time) {
            var left = parseFloat(time.dataset.until) - now;
            time.textContent = left > 0 ? "in " + span(left) : "due " + span(left) + " ago";
        });
        root.querySelectorAll("time[data-since]").forEach(function (time) {
            var gone = Math.max(0, now - parseFloat(time.dataset.since));
            time.textContent = time.dataset.words.replace("{}", span(gone));
        });
    }
    window.setInterval(tick, 1000);

    // --- parts of the page -------------------------------------------------------------------------------------------

    function say(text) {
        document.getElementById("smq-said").textContent = text;
    }

    function fetched(url) {
        return fetch(url, {credentials: "same-origin", headers: {"X-Requested-With": "fetch"}});
    }

    // The HTML of a part of the page; null for an error, or a login that has run out.
    function part_of(url) {
        return fetched(url).then(function (answer) {
            return answer.ok && !answer.redirected ? answer.text() : null;
        });
    }

    var shown = new Map();

    function replace(element, html) {
        var focused = element.contains(document.activeElement) ? document.activeElement.id : "";
        var open = Array.from(element.querySelectorAll("details[open]")).map(function (one) { return one.id; });
        element.innerHTML = html;
        open.forEach(function (id) { document.getElementById(id).open = true; });
        if (focused && document.getElementById(focused)) {
            document.getElementById(focused).focus({preventScroll: true});
        }
        tick();
    }

    function refresh() {
        return Promise.all(Array.from(root.querySelectorAll("[data-part]")).map(function (element) {
            return part_of(element.dataset.part).then(function (html) {
                if (html !== null && html !== shown.get(element.id)) {
                    shown.set(element.id, html);
                    replace(element, html);
                }
            });
        }));
    }

    // Changes that come together are one fetch, and a page that nobody sees fetches when it is seen.
    var pending = null;

    function soon() {
        if (pending === null && !document.hidden) {
            pending = window.setTimeout(function () {
                pending = null;
                dirty = false;
                Promise.all([refresh(), newest()]).catch(function () { dirty = true; });
            }, 150);
        } else {
            dirty = true;
        }
    }
    var dirty = false;
    document.addEventListener("visibilitychange", function () {
        if (!document.hidden && dirty) {
            soon();
        }
    });

    // --- the timeline ------------------------------------------------------------------------------------------------

    var timeline = document.getElementById("timeline");
    var last = part && part.dataset.after !== undefined ? parseInt(part.dataset.after, 10) : -1;
    var known = last;

    function rows(html) {
        var made = document.createElement("template");
        made.innerHTML = html;
        return made.content;
    }

    function newest() {
        if (!timeline || timeline.hasAttribute("data-still") || known >= last) {
            return Promise.resolve();
        }
        return part_of(timeline.dataset.rows + (timeline.dataset.rows.includes("?") ? "&" : "?") + "after=" + known).then(function (html) {
            var items = steps(rows(html || "")).filter(function (item) { return sequence(item) > known; });
            if (!items.length) {
                return null;
            }
            if (sequence(items[items.length - 1]) - known > 1) {
                return anew(); // too many to follow
            }
            items.slice().reverse().forEach(function (item) {
                item.classList.add("smq-new");
                timeline.prepend(item);
            });
            return told(items[0]);
        });
    }

    function steps(fragment) {
        return Array.from(fragment.querySelectorAll("li[data-sequence]"));
    }

    function sequence(item) {
        return parseInt(item.dataset.sequence, 10);
    }

    // Begin with the latest steps, behind which the older ones are a link.
    function anew() {
        return part_of(timeline.dataset.rows).then(function (html) {
            var fresh = rows(html || ""), items = steps(fresh);
            if (items.length) {
                timeline.replaceChildren(fresh);
                told(items[0]);
            }
        });
    }

    function told(newest) {
        known = sequence(newest);
        last = Math.max(last, known);
        document.querySelector("[data-total]").textContent = (known + 1).toLocaleString("en");
        say(newest.dataset.said);
    }

    document.addEventListener("click", function (event) {
        var older = event.target.closest("[data-older]");
        if (!older || event.ctrlKey || event.metaKey) {
            return;
        }
        event.preventDefault();
        var url = new URL(older.href);
        url.searchParams.set("part", "timeline");
        url.hash = "";
        part_of(url).then(function (html) {
            if (html === null) {
                window.location.assign(older.href); // which says what is wrong
                return;
            }
            var fresh = rows(html), first = fresh.querySelector("li");
            older.closest("li").replaceWith(fresh);
            if (first) {
                first.tabIndex = -1;
                first.focus({preventScroll: true});
            }
        }).catch(function () { say("Flower does not answer."); });
    });

    // --- events ------------------------------------------------------------------------------------------------------

    function live(state, text) {
        var badge = document.getElementById("smq-live");
        if (badge) {
            badge.hidden = false;
            badge.querySelector(".status-dot").className = "status-dot " + state;
            badge.querySelector("[data-live-text]").textContent = text;
        }
    }

    // A browser connects again by itself after a lost connection, but not after an answer that is an error. A page that
    // nobody sees has no stream: a browser has but a few connections for all of its tabs.
    var AGAIN_MS = 5000;
    var source = null, again = null, lost = false, before = false;

    function listen() {
        var address = part.dataset.events;
        if (last >= 0) {
            address += (address.includes("?") ? "&" : "?") + "after=" + last;
        }
        window.clearTimeout(again);
        source = new EventSource(address);
        source.addEventListener("open", function () {
            live("status-dot-live", "Live");
            if (lost) {
                say("Connected again.");
            }
            if (before) {
                soon(); // what was missed meanwhile
            }
            lost = false;
            before = true;
        });
        source.addEventListener("error", function (event) {
            if (event.target !== source) {
                return;
            }
            live("status-dot-error", "Connecting…");
            if (!lost) {
                say("The connection is lost: what is shown may be out of date.");
            }
            lost = true;
            if (source.readyState === EventSource.CLOSED) {
                window.clearTimeout(again);
                again = window.setTimeout(listen, AGAIN_MS);
            }
        });
        source.addEventListener("changed", soon);
        source.addEventListener("rewound", function () { window.location.reload(); });
        source.addEventListener("message", function (event) {
            last = Math.max(last, JSON.parse(event.data).sequence);
            soon();
        });
    }

    function silent() {
        window.clearTimeout(again);
        if (source) {
            source.close();
            source = null;
        }
    }

    if (part && window.EventSource) {
        if (!document.hidden) {
            listen();
        }
        document.addEventListener("visibilitychange", function () {
            if (document.hidden) {
                silent();
            } else if (!source) {
                listen();
            }
        });
        window.addEventListener("pagehide", silent);
        window.addEventListener("pageshow", function (event) {
            if (event.persisted && !source) {
                listen();
            }
        });
    }

    // --- a search that has found nothing yet -------------------------------------------------------------------------

    var found = document.getElementById("found");

    function follow() {
        var place = found && found.querySelector("[data-follow]");
        if (!place) {
            return;
        }
        var looked = parseInt(place.dataset.looked, 10), stopped = false;
        var line = document.createElement("span"), stop = document.createElement("button");
        line.setAttribute("data-progress", "");
        stop.type = "button";
        stop.className = "btn btn-sm btn-outline-secondary ms-2";
        stop.textContent = "Stop";
        stop.addEventListener("click", function () {
            stopped = true;
            stop.remove();
        });

        function progress() {
            line.textContent = (stopped ? "Stopped: nothing" : "Searching: nothing yet") + " among " + looked.toLocaleString("en") + " operations.";
        }

        function next(address) {
            part_of(address).then(function (html) {
                if (html === null) {
                    window.location.assign(address.replace(/([?&])part=found&?/, "$1"));
                    return;
                }
                var fresh = rows(html), following = fresh.querySelector("[data-follow]");
                looked += following ? parseInt(following.dataset.looked, 10) : 0;
                if (!following) {
                    found.replaceChildren(fresh);
                    tick();
                    say(found.querySelector("tbody").rows.length + " rows found.");
                    return;
                }
                found.querySelectorAll("a[rel=next]").forEach(function (link) { // from where a stopped one goes on
                    link.href = fresh.querySelector("a[rel=next]").href;
                });
                progress();
                if (!stopped) {
                    next(following.dataset.follow);
                }
            }).catch(function () {
                stopped = true;
                stop.remove();
                line.textContent = "Flower does not answer.";
            });
        }

        stop.addEventListener("click", progress);
        place.replaceChildren(line, stop);
        progress();
        say("Searching on.");
        next(place.dataset.follow);
    }
    follow();

    // --- asking before acting ----------------------------------------------------------------------------------------

    function withPart(address) {
        var url = new URL(address, window.location.href);
        url.searchParams.set("part", "form");
        return url;
    }

    function ask(html) {
        dialog.innerHTML = html;
        if (!dialog.open) {
            dialog.showModal();
        }
        var first = dialog.querySelector("[aria-invalid]") || dialog.querySelector(".smq-form input:not([type=hidden]), .smq-form select, .smq-form textarea")
            || dialog.querySelector("[data-close]");
        if (first) {
            first.focus();
        }
    }

    function broken(text) {
        var told = document.createElement("p");
        told.className = "alert alert-danger";
        told.setAttribute("role", "alert");
        told.textContent = text;
        dialog.prepend(told);
    }

    if (dialog && dialog.showModal) {
        document.addEventListener("click", function (event) {
            var link = event.target.closest("[data-act]");
            if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
                event.preventDefault();
                part_of(withPart(link.href)).then(function (html) {
                    if (html === null) {
                        window.location.assign(link.href); // a login that has run out, say
                    } else {
                        ask(html);
                    }
                }).catch(function () { say("Flower does not answer."); });
            } else if (dialog.open && event.target.closest("[data-close]")) {
                event.preventDefault();
                dialog.close();
            }
        });
        dialog.addEventListener("submit", function (event) {
            var form = event.target, button = form.querySelector("button[type=submit]");
            event.preventDefault();
            button.disabled = true;
            fetch(withPart(form.action), {method: "POST", body: new URLSearchParams(new FormData(form)), credentials: "same-origin"}).then(function (answer) {
                var type = answer.headers.get("Content-Type") || "";
                if (answer.ok && type.includes("json")) {
                    return answer.json().then(function (done) {
                        dialog.close();
                        said(done.said);
                        soon();
                    });
                }
                return answer.text().then(function (html) {
                    if (html.includes("smq-form-title")) {
                        ask(html);
                    } else {
                        button.disabled = false;
                        broken("It was refused (" + answer.status + "). Reload the page, and try again.");
                    }
                });
            }).catch(function () {
                button.disabled = false;
                broken("Flower does not answer. Whether it was done is not known.");
            });
        });
    }

    function said(text) {
        var toast = document.createElement("p");
        toast.className = "alert alert-success shadow";
        toast.textContent = text;
        document.getElementById("toast-container").append(toast);
        window.setTimeout(function () { toast.remove(); }, 8000);
    }
}());
