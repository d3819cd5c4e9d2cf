package datadir
import ("testing";"context";"time";"os";"fmt")
func TestPerf(t *testing.T){
 src:=os.Getenv("PERF_SRC"); if src=="" {t.Skip()}
 l,_:=NewLayout(src,"")
 start:=time.Now()
 b,err:=CreateBackup(context.Background(),l,os.Getenv("PERF_DST"),testMeta,nil); must(t,err)
 fmt.Println("backup", time.Since(start))
 start=time.Now()
 must(t,b.Verify(context.Background(),nil)); fmt.Println("verify",time.Since(start))
 start=time.Now()
 r,err:=b.Restore(context.Background(),l,nil); must(t,err)
 fmt.Println("restore",time.Since(start)); for _,x:=range r{os.RemoveAll(x)}
 start=time.Now()
 _,err=CopyTree(context.Background(),os.Getenv("PERF_DST")+"/plain",src,CopyOptions{}); must(t,err)
 fmt.Println("copytree",time.Since(start))
}
