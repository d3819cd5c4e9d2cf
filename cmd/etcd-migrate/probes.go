package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// probeFlags say how the outside is told of a migration under way. docs/probes.md argues for the numbers.
type probeFlags struct {
	ProbeListen    string        `group:"probes" placeholder:"URL,…" env:"PROBE_LISTEN" help:"Where /livez, /readyz, /health and /metrics are answered during a migration, such as http://127.0.0.1:2381, or none. Default: etcd's --listen-metrics-urls."`
	StallTimeout   durationValue `group:"probes" placeholder:"5m" default:"5m" env:"STALL_TIMEOUT" help:"After how long without progress they answer 503 (${default}); while an etcd makes a step, --step-timeout comes on top."`
	TerminationLog string        `group:"probes" placeholder:"FILE" default:"${terminationLog}" env:"TERMINATION_LOG" help:"File that takes the error if this fails, for the kubelet to show (${default}). Without that file, nothing is written."`
}

// probes answers in place of the etcd that is to be, from when there is something to do until it is closed.
type probes struct {
	*tracker
	urls     []*url.URL
	tls      transport.TLSInfo
	warn     func(string)
	once     sync.Once
	server   *http.Server
	finished sync.WaitGroup
}

// probes makes what answers on the addresses that the flags name, or else on those of the etcd. Nothing is opened yet.
func (f probeFlags) probes(e etcdSettings, stepTimeout time.Duration, warn func(string)) (*probes, error) {
	p := &probes{tracker: newTracker(time.Duration(f.StallTimeout), stepTimeout), warn: warn,
		tls: transport.TLSInfo{CertFile: e.CertFile, KeyFile: e.KeyFile, TrustedCAFile: e.TrustedCAFile, ClientCertAuth: e.ClientCertAuth}}
	list := f.ProbeListen
	if list == "none" {
		return p, nil
	}
	if list == "" {
		list = e.MetricsURLs
	}
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		u, err := url.Parse(s)
		if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.Port() == "") {
			err = fmt.Errorf("%q is not http:// or https:// with an address and a port", s)
		}
		if err != nil && f.ProbeListen != "" {
			return nil, usagef("--probe-listen: %w", err)
		}
		if err != nil {
			warn("probes are not answered during a migration on one of etcd's --listen-metrics-urls: " + err.Error())
			continue
		}
		p.urls = append(p.urls, u)
	}
	return p, nil
}

// observe takes an event of the migration. The first one opens the listeners: without anything to do, there is none.
func (p *probes) observe(e migrate.Event) {
	p.tracker.observe(e)
	p.once.Do(p.open)
}

// open listens. Where that is not possible the migration goes on: an answer to a probe is not worth an outage.
func (p *probes) open() {
	if len(p.urls) == 0 {
		return
	}
	p.server = &http.Server{
		Handler:           p.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // of clients that speak no TLS, for example
	}
	p.server.SetKeepAlivesEnabled(false) // so that nobody is connected any more when etcd takes over
	for _, u := range p.urls {
		l, err := p.listen(u)
		if err != nil {
			p.warn(fmt.Sprintf("probes are not answered on %s during the migration: %v", u, err))
			continue
		}
		p.finished.Go(func() { _ = p.server.Serve(l) }) // it ends when it is closed
	}
}

func (p *probes) listen(u *url.URL) (net.Listener, error) {
	if u.Scheme == "http" {
		return net.Listen("tcp", u.Host)
	}
	if p.tls.Empty() {
		return nil, fmt.Errorf("https needs etcd's --cert-file and --key-file")
	}
	// As etcd does for its metrics URLs (server/embed/etcd.go): with the certificate that clients get to see.
	return transport.NewListenerWithOpts(u.Host, u.Scheme, transport.WithTLSInfo(&p.tls))
}

// close frees the addresses, so that etcd can have them, and waits until that is so.
func (p *probes) close() {
	p.once.Do(func() {}) // not any more
	if p.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := p.server.Shutdown(ctx); err != nil {
		_ = p.server.Close() // of requests that take longer than etcd should wait
	}
	p.finished.Wait()
}

func (p *probes) handler() http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, _ *http.Request) {
		ok, text := p.alive()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(statusOf(ok))
		fmt.Fprintln(w, text)
	}
	mux.HandleFunc("GET /livez", answer)
	mux.HandleFunc("GET /readyz", answer)
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		ok, text := p.alive()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(statusOf(ok))
		_ = json.NewEncoder(w).Encode(map[string]string{"health": fmt.Sprint(ok), "reason": text}) // who asked is gone
	})
	mux.Handle("GET /metrics", p.metrics())
	return mux
}

func statusOf(ok bool) int {
	if ok {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}
