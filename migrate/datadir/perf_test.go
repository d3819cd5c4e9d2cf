package datadir
import ("testing";"context";"time";"os";"fmt")
func TestPerf(t *testing.T){
 src:=os.Getenv("PERF_SRC"); if src=="" {t.Skip()}
 l,_:=NewLayout(src,"")
 start:=time.Now()
 if os.Getenv("PERF_KIND")=="restore" {
  all,err:=ListBackups(os.Getenv("PERF_DST")); must(t,err)
  start=time.Now()
  r,err:=all[0].Restore(context.Background(),l,nil); must(t,err); fmt.Println("restore",time.Since(start)); for _,x:=range r{os.RemoveAll(x)}
  return
 }
 if os.Getenv("PERF_KIND")=="tree" {
  _,err:=CopyTree(context.Background(),os.Getenv("PERF_DST"),src,CopyOptions{}); must(t,err); fmt.Println("tree",time.Since(start))
  return
 }
 _,err:=CreateBackup(context.Background(),l,os.Getenv("PERF_DST"),testMeta,nil); must(t,err)
 fmt.Println("backup", time.Since(start))
}
