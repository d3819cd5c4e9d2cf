package main

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// metric is one number that a tracker knows.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(progress) float64
}

func gauge(name, help string, of func(progress) float64) metric {
	return metric{prometheus.NewDesc("etcd_migrate_"+name, help, nil, nil), prometheus.GaugeValue, of}
}

func counter(name, help, unit string) metric {
	return metric{prometheus.NewDesc("etcd_migrate_"+name, help, nil, nil), prometheus.CounterValue,
		func(p progress) float64 { return float64(p.work[unit]) }}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// collector makes metrics of what a tracker knows at the time.
type collector struct {
	*tracker
	metrics []metric
	step    *prometheus.Desc
}

func newCollector(t *tracker) *collector {
	return &collector{t, []metric{
		gauge("steps", "Steps of the plan; 0 as long as there is none.", func(p progress) float64 { return float64(p.steps) }),
		gauge("steps_done", "Steps of the plan that are finished.", func(p progress) float64 { return float64(p.done) }),
		counter("copied_bytes_total", "Bytes copied into the backup.", migrate.UnitBytes),
		counter("records_total", "Records converted and proven; a record counts each time.", migrate.UnitRecords),
		counter("etcd_lines_total", "Lines printed by the private etcds.", migrate.UnitLines),
		gauge("started_timestamp_seconds", "When this run was started.", func(p progress) float64 { return seconds(p.began) }),
		gauge("last_progress_timestamp_seconds", "When there was progress last.", func(p progress) float64 { return seconds(p.last) }),
	}, prometheus.NewDesc("etcd_migrate_step", "Number of the step under way, counted from 1; absent between steps.",
		[]string{"kind", "from", "to", "of"}, nil)}
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		ch <- m.desc
	}
	ch <- c.step
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	p := c.look()
	for _, m := range c.metrics {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.of(p))
	}
	if p.number > 0 {
		ch <- prometheus.MustNewConstMetric(c.step, prometheus.GaugeValue, float64(p.number),
			string(p.step.Kind), p.step.From.String(), p.step.To.String(), strconv.Itoa(p.steps))
	}
}

// metrics answers in Prometheus's text format. Its own handler, promhttp, brings compression that nobody needs here, and
// a megabyte of program.
func (p *probes) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(p.tracker))
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		families, err := registry.Gather()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", string(format))
		enc := expfmt.NewEncoder(w, format)
		for _, f := range families {
			if enc.Encode(f) != nil {
				return // who asked is gone
			}
		}
	})
}
